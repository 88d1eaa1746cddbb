"""The metrics of tasks, as lm-evaluation-harness 0.4.13 defines them (api/task.py and api/metrics.py).

Multiple choice: `acc` is the share of examples whose right choice has the largest log-likelihood; `acc_norm` the same
with log-likelihoods per character of the choice, without its delimiter. Cloze: `acc` is the share of completions that
greedy decoding gives, `perplexity` is exp of minus the mean log-likelihood of a completion (not of a token). Standard
errors are those of a mean of n values: sqrt(p (1 - p) / (n - 1)).

`bits_per_byte` is not of the harness: minus the log-likelihood of the right answers in bits, per byte of theirs. It
improves long before `acc` rises above `chance`, the accuracy of guessing.
"""

import math

import numpy as np

from pretraining.training.tasks.files import FileTask


def file_task_metrics(task: FileTask, log_likelihoods: np.ndarray, are_greedy: np.ndarray) -> dict[str, float]:
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
