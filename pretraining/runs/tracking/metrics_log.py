"""The log of a run: metrics.jsonl, one record a logging step, and an event for whatever else happens."""

import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonlines
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.runs.run_folder import METRICS_NAME
from pretraining.runs.tracking.metrics_file import describe_damage, sound_records
from pretraining.system.files import atomic_path, fsync
from pretraining.system.privacy import mask_all
from pretraining.system.supervision import Restart

logger = logging.getLogger(__name__)

TIME_NAME = "logged_at"
SAMPLES = "samples"  # the only event that is made again with the steps after a checkpoint


class MetricsLog(TrainerCallback):
    """Writes every record that the Trainer logs, and events besides. Only the first process writes.

    `begins_with` is the log of another run folder, from whose checkpoint this one goes on; `restart` is what has
    brought this one up again, if anything has; `start` is what is written of this start.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        begins_with: Path | None = None,
        restart: Restart | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        self._path = run_dir / METRICS_NAME
        self._begins_with = begins_with
        self._restart = restart
        self._start = start
        self._lock = threading.RLock()  # a warning can come from the thread that writes a checkpoint
        self._events: list[dict[str, Any]] = []
        self._unwritten: list[Mapping[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the records after the step that this run goes on from: they are made again. Keep what is warned of."""
        if state.is_world_process_zero:
            self.forget_after(state.global_step, state.log_history)
            if self._start is not None:
                self.write_event({"step": state.global_step, "event": "start", **self._start}, is_new=True)
            logging.getLogger("pretraining").addHandler(_WarningEvents(self, state))
            if self._restart is not None:
                restart = {"restart": self._restart.number, "reason": self._restart.reason}
                self.write_event({"step": state.global_step, "event": "restart", **restart}, is_new=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the last steps told as well, where --logging_steps does not divide the run."""
        if state.global_step >= state.max_steps and args.logging_strategy != "no":
            control.should_log = True

    def forget_after(self, step: int, evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Drop the records of later steps, and those of this one that are none of its checkpoint's `evaluations`.

        They are made again, as are samples. Other events stay: they happened, and one that happens again is not
        repeated.

        Raises:
            OSError: when the disk takes no copy; then all is as it was.
        """
        made_before = [record for record in evaluations if record["step"] == step and "eval_loss" in record]
        losses = [json_value(record["eval_loss"]) for record in made_before]

        def is_kept(record: Mapping[str, Any]) -> bool:
            if record["step"] != step:
                return record["step"] < step
            return "test_loss" not in record and ("eval_loss" not in record or record["eval_loss"] in losses)

        def stays(record: Mapping[str, Any], *, is_ours: bool = True) -> bool:
            return is_kept(record) or (is_ours and record.get("event", SAMPLES) != SAMPLES)

        source = self._path if self._path.is_file() else self._begins_with
        with self._lock:
            if source is not None and source.is_file():
                self._copy_of(source, lambda record: stays(record, is_ours=source == self._path), step)
            self._unwritten = [record for record in self._unwritten if stays(record)]

    def _copy_of(self, source: Path, stays: Callable[[Mapping[str, Any]], bool], step: int) -> None:
        """Put the records of a log that stay in the place of this one."""
        events: list[dict[str, Any]] = []
        damaged: list[int] = []
        with atomic_path(self._path) as temporary, jsonlines.open(temporary, "w") as writer:
            for record in sound_records(source, damaged):
                if stays(record):
                    writer.write(record)
                    if "event" in record and record["step"] >= step:
                        events.append(_without_time(record))
            if damaged:
                kept = _keep_damaged(source) if source == self._path else source
                logger.warning("%s and left out; the log as it was is %s", describe_damage(source, damaged), kept)
        self._events = events

    def sync(self) -> None:
        """Have on the disk what was logged until a checkpoint, whose resume keeps it; no reason to end a run."""
        with suppress(OSError):
            fsync(self._path)

    def write_event(self, event: Mapping[str, Any], *, is_new: bool = False) -> None:
        """Append what happened in a step, unless the same stands there from before a resume; `is_new` says not so."""
        record = {name: json_value(value) for name, value in event.items()}
        if record["event"] != SAMPLES:  # text of a model stays as it is; errors quote URLs and answers of servers
            record = mask_all(record)
        with self._lock:
            if is_new or record not in self._events:
                self._append(record)
                # None of an earlier step comes again in this start, and a long run has many.
                self._events = [known for known in self._events if known["step"] >= record["step"]] + [record]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append the record."""
        if state.is_world_process_zero and logs is not None:
            record = {"step": state.global_step, **logs}
            with self._lock:
                self._append({name: json_value(value) for name, value in record.items()})

    def _append(self, record: Mapping[str, Any]) -> None:
        """Write a record with the time, and those that a full disk did not take before."""
        self._unwritten.append({**record, TIME_NAME: round(time.time(), 3)})
        size = None
        try:
            size = self._path.stat().st_size if self._path.exists() else 0
            with jsonlines.open(self._path, "a") as writer:
                writer.write_all(self._unwritten)
        except OSError as error:
            if len(self._unwritten) == 1:
                logger.warning("%s: %s; its records are kept until they can be written", self._path, error.strerror)
            with suppress(OSError):  # of a disk that is read-only now, say, which has no half a line either
                if size is not None:
                    os.truncate(self._path, size)  # half a line would spoil the next one
            return
        self._unwritten.clear()


class _WarningEvents(logging.Handler):
    """Keeps the warnings of this suite as events, but for those that are events of their own already."""

    def __init__(self, metrics_log: MetricsLog, state: TrainerState) -> None:
        super().__init__(logging.WARNING)
        self._metrics_log = metrics_log
        self._state = state

    def filter(self, record: logging.LogRecord) -> bool:
        """Leave out what tells that nothing can be written, which is said with the log's lock held."""
        return record.levelno == logging.WARNING and record.name != __name__ and not hasattr(record, "has_event")

    def emit(self, record: logging.LogRecord) -> None:
        """Write it down."""
        event = {"step": self._state.global_step, "event": "warning", "message": record.getMessage()}
        try:
            self._metrics_log.write_event(event)
        except Exception:  # as all handlers of logging do: who warns is not to fail
            self.handleError(record)


def _keep_damaged(path: Path) -> Path:
    """Give a log that is about to be replaced a second name; a link takes no space, and the log can be a gigabyte."""
    names = (f"{path.name}.damaged{number}" for number in ("", *(f"-{count}" for count in range(2, 10_000))))
    kept = next(place for name in names if not (place := path.with_name(name)).exists())
    try:
        os.link(path, kept)
    except OSError:  # of a file system without links
        shutil.copyfile(path, kept)
    return kept


def _without_time(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != TIME_NAME}


def json_value(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as the words, which no reader takes for a number.

    UTF-8 has no bytes that are none, such as those of odd file names: they are written as their numbers.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)
