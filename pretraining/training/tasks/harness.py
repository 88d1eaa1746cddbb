"""Tasks of lm-evaluation-harness, where it is installed: its requests, scored by this suite, and its metrics.

Few-shot examples, prompts and metrics are those of the harness (lm_eval 0.4.13) with the seeds of its command line, so
they are the same on every process. A task with local data needs no network: a YAML file with `dataset_path: json` and
`data_files`.
"""

import logging
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from pretraining.errors import UserError, reading
from pretraining.training.tasks.files import HARNESS_SUFFIXES, HarnessTask
from pretraining.training.tasks.requests import TaskRequests, encode_texts

OUTPUT_TYPES = ("multiple_choice", "loglikelihood")  # that need no generated text
RANDOM_SEED, OTHER_SEED = 0, 1234  # lm_eval/defaults.py: of `random`; of `numpy.random` and of few-shot examples


def encode_harness_task(
    task: HarnessTask, tokenizer: PreTrainedTokenizerFast, *, num_positions: int, flag: str
) -> Iterator[TaskRequests]:
    """Yield the requests of a task, or of each task of a group.

    Raises:
        UserError: if it cannot be loaded, e.g. for lack of its data, or generates text.
    """
    from lm_eval.tasks import TaskManager

    place, is_file = f"{flag} {task.location}", task.location.endswith(HARNESS_SUFFIXES)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    reads = reading(f"{place}: the task", remedy="check its name or file, and its data")
    with reads, harness_seeds(), redirect_stderr(StringIO()):  # every process would print its progress bars
        loaded = TaskManager(include_defaults=not is_file).load(task.location)["tasks"]
        for one in loaded.values():
            if one.OUTPUT_TYPE not in OUTPUT_TYPES:
                raise UserError(
                    f"{place}: {one.OUTPUT_TYPE} is not supported; use a task of {' or '.join(OUTPUT_TYPES)}"
                )
            one.set_fewshot_seed(OTHER_SEED)  # without it each process draws other examples
            one.build_all_requests()
    for name, one in loaded.items():
        texts = [instance.args for instance in one.instances]
        requests = encode_texts(texts, tokenizer, num_positions=num_positions, place=place)
        yield TaskRequests(task.name if len(loaded) == 1 else name, requests, _Metrics(one))


@contextmanager
def harness_seeds() -> Iterator[None]:
    """The seeds of the harness, for tasks that shuffle their documents; the random states of the run stay as they are.

    Each process of a run has other states, by which it would get other requests.
    """
    states = random.getstate(), np.random.get_state()
    random.seed(RANDOM_SEED)
    np.random.seed(OTHER_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class _Metrics:
    """The metrics of a task by its own rules, with the first of its filters."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __call__(self, log_likelihoods: np.ndarray, are_greedy: np.ndarray) -> dict[str, float]:
        from lm_eval.api.metrics import mean, mean_stderr

        values: dict[str, list[Any]] = defaultdict(list)
        documents = self._filtered(log_likelihoods, are_greedy)
        for document, responses in documents:
            for name, value in self._task.process_results(document, responses).items():
                values[name].append(value)
        metrics: dict[str, float] = {}
        for name, found in values.items():
            aggregate = self._task.aggregation().get(name, mean)
            metrics[name] = float(aggregate(found))
            if aggregate is mean and len(found) > 1:
                metrics[f"{name}_stderr"] = float(mean_stderr(found))
        return {**metrics, "num_examples": len(documents)}

    def _filtered(self, log_likelihoods: np.ndarray, are_greedy: np.ndarray) -> list[tuple[Any, list[Any]]]:
        """Each document with the responses to its requests."""
        instances = self._task.instances
        for instance, log_likelihood, is_greedy in zip(instances, log_likelihoods, are_greedy, strict=True):
            instance.resps, instance.filtered_resps = [(float(log_likelihood), bool(is_greedy))], {}
        self._task.apply_filters()
        by_document: dict[int, list[Any]] = defaultdict(list)
        for instance in sorted(instances, key=lambda one: (one.doc_id, one.idx)):
            by_document[instance.doc_id].append(instance)
        return [
            (some[0].doc, [next(iter(instance.filtered_resps.values())) for instance in some])
            for some in by_document.values()
        ]
