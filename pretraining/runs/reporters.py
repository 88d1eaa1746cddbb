"""TensorBoard and the trackers beside metrics.jsonl: a reporter that fails ends itself, not the run."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from transformers import TrainerCallback

GUARDED_EVENTS = ("on_log", "on_evaluate", "on_save", "on_train_end")

logger = logging.getLogger(__name__)


def guard_reporters(callbacks: Iterable[TrainerCallback]) -> None:
    """Keep the errors of the Trainer's own reporters, of a full disk or a network, from the training.

    Those of their start stay errors: a tracker that was asked for and cannot be reached is a mistake to mend.
    """
    for callback in callbacks:
        if type(callback).__module__.startswith("transformers.integrations"):
            for name in GUARDED_EVENTS:
                setattr(callback, name, _guarded(callback, getattr(callback, name)))


def _guarded(callback: TrainerCallback, report: Callable[..., Any]) -> Callable[..., Any]:
    name = type(callback).__name__.removesuffix("Callback")

    def report_while_it_works(*args: Any, **kwargs: Any) -> Any:
        try:
            return report(*args, **kwargs)
        except Exception as error:  # each reporter has errors of its own
            logger.warning("%s: %s; it gets no more records, metrics.jsonl has them all", name, error)
            for event in GUARDED_EVENTS:
                setattr(callback, event, _report_nothing)
            return None

    return report_while_it_works


def _report_nothing(*_args: Any, **_kwargs: Any) -> None:
    """In place of a reporter that failed."""
