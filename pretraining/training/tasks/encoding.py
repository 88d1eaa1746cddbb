"""The requests of tasks, encoded by each process for itself and then compared: they must be the same on all."""

import hashlib
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
from pretraining.training.tasks.metrics import file_task_metrics
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
    return TaskRequests(task.name, requests, partial(file_task_metrics, task))
