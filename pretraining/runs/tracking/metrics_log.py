"""Write metrics.jsonl: one record per logging step, and an event for whatever else happens."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonlines
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.runs.run_folder import METRICS_NAME, free_name
from pretraining.runs.tracking.metrics_file import describe_damage, sound_records
from pretraining.system.files import atomic_path, fsync, link_or_copy
from pretraining.system.privacy import mask_all
from pretraining.system.supervision import Restart

logger = logging.getLogger(__name__)

TIME_NAME = "logged_at"
SAMPLES = "samples"  # the only event that is repeated with the steps after a checkpoint
Logs = dict[str, float] | None  # a record or an evaluation, as the Trainer passes it to its callbacks


class MetricsLog(TrainerCallback):
    """Write every record that the Trainer logs, and events. Only the main process writes.

    `parent_log` is the log of another run folder, from whose checkpoint this run starts; `restart` is the automatic
    restart that started this process, if any; `start` has the fields of the start event; `phase_of` names the phase of
    a step, if the run has phases.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        parent_log: Path | None = None,
        restart: Restart | None = None,
        start: Mapping[str, Any] | None = None,
        phase_of: Callable[[int], str | None] = lambda _: None,
    ) -> None:
        self._path = run_dir / METRICS_NAME
        self._parent_log = parent_log
        self._restart = restart
        self._start = start
        self._phase_of = phase_of
        self._lock = threading.RLock()  # a warning can come from the thread that writes a checkpoint
        self._events: list[dict[str, Any]] = []
        self._unwritten: list[Mapping[str, Any]] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop the records after the step that the run resumes from, which are repeated, and record the start."""
        if state.is_world_process_zero:
            self.forget_after(state.global_step, state.log_history)
            if self._start is not None:
                self.write_event({"step": state.global_step, "event": "start", **self._start}, is_new=True)
            logging.getLogger("pretraining").addHandler(_WarningEvents(self, state))
            if self._restart is not None:
                restart = {"restart": self._restart.number, "reason": self._restart.reason}
                self.write_event({"step": state.global_step, "event": "restart", **restart}, is_new=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record that another phase begins."""
        step, phase = state.global_step, self._phase_of(state.global_step + 1)
        if state.is_world_process_zero and step and phase != self._phase_of(step):
            self.write_event({"step": step, "event": "phase", "phase": phase})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the last step as well, where --logging_steps does not divide the number of steps."""
        if state.global_step >= state.max_steps and args.logging_strategy != "no":
            control.should_log = True

    def forget_after(self, step: int, evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Drop the records of later steps, and those of this step that are not among its checkpoint's `evaluations`.

        They are repeated, and so are samples. Other events stay: they happened, and if one is repeated it is not
        written twice.

        Raises:
            OSError: when the disk is full; the log is then unchanged.
        """
        kept_losses = [
            json_value(record["eval_loss"])
            for record in evaluations
            if record["step"] == step and "eval_loss" in record
        ]

        def is_kept(record: Mapping[str, Any], *, is_ours: bool = True) -> bool:
            if record["step"] < step or (is_ours and record.get("event", SAMPLES) != SAMPLES):
                return True
            is_repeated = "test_loss" in record or ("eval_loss" in record and record["eval_loss"] not in kept_losses)
            return record["step"] == step and not is_repeated

        source = self._path if self._path.is_file() else self._parent_log
        with self._lock:
            if source is not None and source.is_file():
                self._copy_from(source, lambda record: is_kept(record, is_ours=source == self._path), step)
            self._unwritten = [record for record in self._unwritten if is_kept(record)]

    def _copy_from(self, source: Path, is_kept: Callable[[Mapping[str, Any]], bool], step: int) -> None:
        """Replace this log by the records of `source` that are kept."""
        events: list[dict[str, Any]] = []
        damaged: list[int] = []
        with atomic_path(self._path) as temporary, jsonlines.open(temporary, "w") as writer:
            for record in sound_records(source, damaged):
                if is_kept(record):
                    writer.write(record)
                    if "event" in record and record["step"] >= step:
                        events.append({name: value for name, value in record.items() if name != TIME_NAME})
            if damaged:
                kept = source
                if source == self._path:  # which is about to be replaced
                    link_or_copy(source, kept := free_name(source, ".damaged"))
                logger.warning("%s and dropped; the log as it was is %s", describe_damage(source, damaged), kept)
        self._events = events

    def sync(self) -> None:
        """Wait until the disk has the records before a checkpoint, whose resume keeps them; ignore errors."""
        with suppress(OSError):
            fsync(self._path)

    def write_event(self, event: Mapping[str, Any], *, is_new: bool = False) -> None:
        """Append an event, unless the log has it from before a resume; `is_new` writes it in any case."""
        record = {name: json_value(value) for name, value in event.items()}
        if record["event"] != SAMPLES:  # generated text is not changed; errors quote URLs and answers of servers
            record = mask_all(record)
        with self._lock:
            if is_new or record not in self._events:
                self._append(record)
                # Events of earlier steps are not repeated in this start, and a long run has many.
                self._events = [known for known in self._events if known["step"] >= record["step"]] + [record]

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Logs = None, **kwargs: Any
    ) -> None:
        """Append the record."""
        if state.is_world_process_zero and logs is not None:
            phase = self._phase_of(state.global_step)
            record = {"step": state.global_step, **({} if phase is None else {"phase": phase}), **logs}
            with self._lock:
                self._append({name: json_value(value) for name, value in record.items()})

    def _append(self, record: Mapping[str, Any]) -> None:
        """Write a record with the time, after those that could not be written before."""
        self._unwritten.append({**record, TIME_NAME: round(time.time(), 3)})
        size = None
        try:
            size = self._path.stat().st_size if self._path.exists() else 0
            with jsonlines.open(self._path, "a") as writer:
                writer.write_all(self._unwritten)
        except OSError as error:
            if len(self._unwritten) == 1:
                logger.warning("%s: %s; its records are kept until they can be written", self._path, error.strerror)
            with suppress(OSError):  # e.g. of a disk that is read-only now, which has no partial line either
                if size is not None:
                    os.truncate(self._path, size)  # a partial line would damage the next one
            return
        self._unwritten.clear()


class _WarningEvents(logging.Handler):
    """Write the warnings of this suite as events, except those that have an event already."""

    def __init__(self, metrics_log: MetricsLog, state: TrainerState) -> None:
        super().__init__(logging.WARNING)
        self._metrics_log = metrics_log
        self._state = state

    def filter(self, record: logging.LogRecord) -> bool:
        """Skip the warnings of this module that nothing can be written, which are logged with the log's lock held."""
        return record.levelno == logging.WARNING and record.name != __name__ and not hasattr(record, "has_event")

    def emit(self, record: logging.LogRecord) -> None:
        """Write the event."""
        event = {"step": self._state.global_step, "event": "warning", "message": record.getMessage()}
        try:
            self._metrics_log.write_event(event)
        except Exception:  # as in all handlers of logging: a warning must not fail
            self.handleError(record)


def json_value(value: Any) -> Any:
    """A value that JSON can represent: NaN and Inf become strings, which no reader takes for a number.

    Bytes that are not UTF-8, e.g. of file names, are written as their numbers.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
