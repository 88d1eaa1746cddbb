"""The metrics of tasks, as lm-evaluation-harness 0.4.13 defines them (api/task.py and api/metrics.py).

Multiple choice: `acc` is the share of examples whose right choice has the largest log-likelihood; `acc_norm` the same
with log-likelihoods per character of the choice, without its delimiter. Cloze: `acc` is the share of completions that
greedy decoding gives, `perplexity` is exp of minus the mean log-likelihood of a completion (not of a token). Standard
errors are those of a mean of n values: sqrt(p (1 - p) / (n - 1)).

`bits_per_byte` is not of the harness: minus the log-likelihood of the right answers in bits, per byte of theirs. It
improves long before `acc` rises above `chance`, the accuracy of guessing.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import distributed
from transformers import PreTrainedTokenizerFast

from pretraining.errors import UserError, raise_problems
from pretraining.training.distributed.collectives import all_gather_objects
from pretraining.training.tasks.files import FileTask, HarnessTask
from pretraining.training.tasks.harness import encode_harness_task
from pretraining.training.tasks.requests import TaskRequests, encode_texts


def encode_tasks(
    tasks: Sequence[FileTask | HarnessTask], tokenizer: PreTrainedTokenizerFast, *, num_positions: int, flag: str
) -> list[TaskRequests]:
    """The requests of tasks for a model with this tokenizer and number of positions; the same on every process.

    Raises:
        UserError: if a choice has no token or too many, a task of the harness cannot be loaded, two tasks have the same
            name (e.g. a group and one of its tasks), or processes have other requests.
    """
    found: list[TaskRequests] = []
    for task in tasks:
        if isinstance(task, HarnessTask):
            found += encode_harness_task(task, tokenizer, num_positions=num_positions, flag=flag)
        else:
            found.append(_encode_file_task(task, tokenizer, num_positions=num_positions, flag=flag))
    counts = Counter(one.name for one in found)
    raise_problems(
        [f"{flag} {name}: is given {count} times; remove it once" for name, count in counts.items() if count > 1]
    )
    check_same_requests(found, flag=flag)
    return found


def check_same_requests(tasks: Sequence[TaskRequests], *, flag: str) -> None:
    """Compare requests between processes, each of which has its own copy: the shapes of its batches follow from them.

    Raises:
        UserError: on every process, with the tasks that differ.
    """
    if not tasks or not distributed.is_initialized():
        return
    hashes = all_gather_objects({task.name: _hash_of(task) for task in tasks})
    names = sorted({name for found in hashes for name in found if len({one.get(name) for one in hashes}) > 1})
    if names:
        raise UserError(
            f"{flag}: the texts of {', '.join(names)} differ between processes; use the same files and versions on all "
            "machines"
        )


def _hash_of(task: TaskRequests) -> str:
    """A hash of the ids of all requests, and of where they are divided."""
    found = hashlib.sha256()
    for request in task.requests:
        found.update(
            np.array([len(request.ids), request.num_context_tokens], np.int32).tobytes() + request.ids.tobytes()
        )
    return found.hexdigest()


def _encode_file_task(
    task: FileTask, tokenizer: PreTrainedTokenizerFast, *, num_positions: int, flag: str
) -> TaskRequests:
    """The requests of a task: the choices of an example one after another."""
    texts = (text for example in task.examples for text in example.texts())
    requests = encode_texts(texts, tokenizer, num_positions=num_positions, place=f"{flag} {task.name}")
    return TaskRequests(task.name, requests, partial(task_metrics, task))


def task_metrics(task: FileTask, log_likelihoods: np.ndarray, are_greedy: np.ndarray) -> dict[str, float]:
    """The metrics of a task from the log-likelihoods in nats of all its choices, and whether each is greedy.

    All but the counts are NaN if a log-likelihood is: a model with NaN in its weights has no accuracy.
    """
    counts = {"num_examples": len(task.examples)}
    answers = [example.choices[example.answer] for example in task.examples]
    starts = np.cumsum([0, *(len(example.choices) for example in task.examples)])[:-1]
    right = log_likelihoods[starts + [example.answer for example in task.examples]]
    bits_per_byte = -right.sum() / math.log(2) / sum(len(answer.encode()) for answer in answers)
    if task.is_cloze:
        found = {**_mean("acc", are_greedy), "perplexity": math.exp(min(-right.mean(), 700.0))}
    else:
        found = _choice_metrics(task, log_likelihoods, starts)
    metrics = {**found, "bits_per_byte": float(bits_per_byte)}
    if not np.isfinite(log_likelihoods).all():
        metrics = dict.fromkeys(metrics, math.nan)
    return {**metrics, **counts}


def _choice_metrics(task: FileTask, log_likelihoods: np.ndarray, starts: np.ndarray) -> dict[str, float]:
    is_right, is_right_per_character = [], []
    for example, start in zip(task.examples, starts, strict=True):
        values = log_likelihoods[start : start + len(example.choices)]
        lengths = [len(choice) for choice in example.choices]
        is_right.append(np.argmax(values) == example.answer)
        is_right_per_character.append(np.argmax(values / lengths) == example.answer)
    chance = float(np.mean([1 / len(example.choices) for example in task.examples]))
    return {**_mean("acc", is_right), **_mean("acc_norm", is_right_per_character), "chance": chance}


def _mean(name: str, values: "np.ndarray | list[bool]") -> dict[str, float]:
    """The mean of zeros and ones, and its standard error if there are several."""
    mean, count = float(np.mean(values)), len(values)
    error = {f"{name}_stderr": math.sqrt(mean * (1 - mean) / (count - 1))} if count > 1 else {}
    return {name: mean, **error}
