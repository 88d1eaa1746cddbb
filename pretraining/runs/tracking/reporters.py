"""TensorBoard and the trackers beside metrics.jsonl: no step twice, and one that fails ends itself, not the run."""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from pretraining.runs.run_folder import METRICS_NAME
from pretraining.runs.tracking.metrics_file import read_log, sound_records
from pretraining.runs.tracking.metrics_log import TIME_NAME

GUARDED_EVENTS = ("on_log", "on_evaluate", "on_save", "on_train_end")

logger = logging.getLogger(__name__)


class Reporters:
    """The Trainer's own reporters, whose errors, of a full disk or a network, are kept from the training.

    Those of their start stay errors: a tracker that was asked for and cannot be reached is a mistake to mend.

    They end when `end` is called, after the last evaluation and not before it as the Trainer would have it: mlflow
    began another run for that. Trackers cannot forget, so a run that goes on does not tell them again what was told
    until step `told_until`.
    """

    def __init__(self, callbacks: Iterable[TrainerCallback], *, told_until: int) -> None:
        self._callbacks = [one for one in callbacks if type(one).__module__.startswith("transformers.integrations")]
        for callback in self._callbacks:
            if not isinstance(callback, TensorBoardCallback):
                callback.on_log = _told_once(callback.on_log, told_until)
            for name in GUARDED_EVENTS:
                setattr(callback, name, _guarded(callback, getattr(callback, name)))
        self._ends = [callback.on_train_end for callback in self._callbacks]
        for callback in self._callbacks:
            callback.on_train_end = _report_nothing

    def end(self, trainer: Trainer) -> None:
        """Nothing more is reported."""
        for callback, end in zip(self._callbacks, self._ends, strict=True):
            if callback.on_log is not _report_nothing:
                end(trainer.args, trainer.state, trainer.control, model=trainer.model)


def _told_once(report: Callable[..., Any], told_until: int) -> Callable[..., Any]:
    def report_what_is_new(
        args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        # Of the last step the evaluation may be missing.
        if state.global_step > told_until or (state.global_step == told_until and "loss" not in logs):
            report(args, state, control, logs=logs, **kwargs)

    return report_what_is_new


def last_reported_step(run_dir: Path) -> int:
    """The last step that a run has told of, whether or not its checkpoint is as late; 0 for none."""
    path = run_dir / METRICS_NAME
    if not path.is_file():
        return 0
    # Damaged lines are reported when the metrics log drops them, right after this.
    return max((one["step"] for one in sound_records(path, []) if "loss" in one), default=0)


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


def purge_after(step: int, callbacks: Iterable[TrainerCallback]) -> None:
    """Have TensorBoard drop the points of later steps, which are made again; what is reported next begins a new file.

    Trackers have nothing like it: those of a run that was rolled back keep both.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            if callback.tb_writer is not None:
                with suppress(Exception):  # of a disk that takes no more: that reporter was given up, or will be
                    callback.tb_writer.close()
            callback.tb_writer = None
            callback._SummaryWriter = partial(SummaryWriter, purge_step=step + 1)


class ReportedBefore(TrainerCallback):
    """A run that goes on reports to TensorBoard as if it had not been interrupted. It must stand after the metrics log.

    What a killed run had reported beyond its checkpoint is dropped, and so is its last step; of that the records are
    reported again which the metrics log has kept, since others, as of a test, are made again.
    """

    def __init__(self, run_dir: Path, callbacks: Iterable[TrainerCallback], *, step: int) -> None:
        self._path = run_dir / METRICS_NAME
        self._boards = [callback for callback in callbacks if isinstance(callback, TensorBoardCallback)]
        purge_after(step - 1, self._boards)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report what was kept."""
        if self._boards and state.is_world_process_zero and self._path.is_file():
            records = [record for record in read_log(self._path) if record["step"] == state.global_step]
            for record in records:
                for board in self._boards:
                    if "event" not in record:
                        board.on_log(args, state, control, logs=_figures(record))


def _figures(record: Mapping[str, Any]) -> dict[str, float]:
    names = ("step", TIME_NAME)
    return {name: value for name, value in record.items() if name not in names and not isinstance(value, str)}
