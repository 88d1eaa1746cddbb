"""The log of a run: metrics.jsonl, one record a logging step, and the same record as a line for people."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonlines
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.cli.restarts import Restart
from pretraining.runs.checkpoints import METRICS_NAME
from pretraining.runs.syncing import sync

logger = logging.getLogger(__name__)

EVALUATIONS = (("eval", "validation"), ("test", "test"))
SAMPLES = "samples"  # the only event that is made again with the steps after a checkpoint


class MetricsLog(TrainerCallback):
    """Writes every record that the Trainer logs, and events besides. Only the first process writes.

    `begins_with` is the log of another run folder, from whose checkpoint this one goes on; `restart` is what has
    brought this one up again, if anything has.
    """

    def __init__(self, run_dir: Path, *, begins_with: Path | None = None, restart: Restart | None = None) -> None:
        self._path = run_dir / METRICS_NAME
        self._begins_with = begins_with
        self._restart = restart
        self._events: list[dict[str, Any]] = []
        self._unwritten: list[Mapping[str, Any]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the records after the step that this run goes on from: they are made again."""
        if state.is_world_process_zero:
            self.forget_after(state.global_step, state.log_history)
            if self._restart is not None:
                restart = {"restart": self._restart.number, "reason": self._restart.reason}
                self.write_event({"step": state.global_step, "event": "restart", **restart})

    def forget_after(self, step: int, evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Drop the records of later steps, and those of this one that are none of its checkpoint's `evaluations`.

        They are made again, as are samples. Other events stay: they happened, and one that happens again is not
        repeated.
        """
        was_evaluated = any(record["step"] == step and "eval_loss" in record for record in evaluations)

        def is_kept(record: Mapping[str, Any]) -> bool:
            if record["step"] != step:
                return record["step"] < step
            return "test_loss" not in record and ("eval_loss" not in record or was_evaluated)

        source = self._path if self._path.is_file() else self._begins_with
        if source is None or not source.is_file():
            return
        partial = self._path.with_suffix(".partial")
        is_ours = source == self._path
        with jsonlines.open(source) as reader, jsonlines.open(partial, "w") as writer:
            # A kill can leave half a last line, which belongs to a step that is made again.
            records = reader.iter(type=dict, skip_invalid=True)
            kept = [r for r in records if is_kept(r) or (is_ours and r.get("event", SAMPLES) != SAMPLES)]
            writer.write_all(kept)
        sync(partial)  # or a power cut could leave neither the old records nor the new ones
        self._events = [record for record in kept if "event" in record]
        partial.replace(self._path)

    def sync(self) -> None:
        """Have on the disk what was logged until a checkpoint, whose resume keeps it."""
        if self._path.exists():
            sync(self._path)

    def write_event(self, event: Mapping[str, Any]) -> None:
        """Append what happened in a step, unless the same stands there from before a resume."""
        record = {name: json_value(value) for name, value in event.items()}
        if record not in self._events:
            self._append(record)
            self._events.append(record)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append the record and say it in a line."""
        if state.is_world_process_zero and logs is not None:
            record = {"step": state.global_step, **logs}
            self._append({name: json_value(value) for name, value in record.items()})
            for line in log_lines(record, max_steps=state.max_steps):
                logger.info(line)

    def _append(self, record: Mapping[str, Any]) -> None:
        """Write a record, and those that a full disk did not take before."""
        self._unwritten.append(record)
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with jsonlines.open(self._path, "a") as writer:
                writer.write_all(self._unwritten)
        except OSError as error:
            if len(self._unwritten) == 1:
                logger.warning("%s: %s; its records are kept until they can be written", self._path, error.strerror)
            if self._path.exists():
                os.truncate(self._path, size)  # half a line would spoil the next one
            return
        self._unwritten.clear()


def json_value(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as the words, which no reader takes for a number."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def log_lines(record: Mapping[str, float], *, max_steps: int) -> list[str]:
    """A record as a person reads it; nothing for records that are of interest only in the file."""
    step = f"step {int(record['step']):>{len(str(max_steps))}}/{max_steps}"
    if "loss" in record:
        return ["  ".join([step, *_training_figures(record)])]
    for prefix, name in EVALUATIONS:
        if f"{prefix}_loss" in record:
            return [f"{step}  {line}" for line in _evaluation_lines(record, f"{prefix}_", name)]
    return []


def _training_figures(record: Mapping[str, float]) -> list[str]:
    figures = [f"loss {record['loss']:.4f}"]
    if "accuracy" in record:
        figures.append(f"accuracy {100 * record['accuracy']:.1f} %")
    figures.append(f"lr {record['learning_rate']:.2e}")
    if "grad_norm" in record:
        figures.append(f"grad norm {record['grad_norm']:.3f}")
    if "tokens_per_second_per_gpu" in record:
        figures.append(f"{record['tokens_per_second_per_gpu']:,.0f} tokens/s/GPU")
    if "mfu" in record:
        figures.append(f"MFU {100 * record['mfu']:.1f} %")
    if record.get("non_finite_steps"):
        figures.append(f"{record['non_finite_steps']:.0f} non-finite")
    if "seconds_left" in record:
        figures.append(f"{duration(record['seconds_left'])} left")
    return figures


def _evaluation_lines(record: Mapping[str, float], prefix: str, name: str) -> list[str]:
    """The figures in total, and under them those of each source, the losses below each other."""
    start = f"{prefix}loss/"
    sources = [key.removeprefix(start) for key in record if key.startswith(start)]
    width = max(len(name), *(len(source) + 2 for source in sources)) if sources else len(name)
    lines = [_evaluation_figures(record, prefix, "", f"{name:{width}}")]
    return lines + [_evaluation_figures(record, prefix, f"/{source}", f"  {source:{width - 2}}") for source in sources]


def _evaluation_figures(record: Mapping[str, float], prefix: str, suffix: str, name: str) -> str:
    figures = [
        f"{name} loss {record[f'{prefix}loss{suffix}']:.4f}",
        f"perplexity {record[f'{prefix}perplexity{suffix}']:,.2f}",
        f"accuracy {100 * record[f'{prefix}accuracy{suffix}']:.1f} %",
    ]
    if f"{prefix}bits_per_byte{suffix}" in record:
        figures.append(f"{record[f'{prefix}bits_per_byte{suffix}']:.3f} bits/byte")
    return "  ".join(figures)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> [duration(7.2), duration(200), duration(7_500), duration(200_000)]
    ['7 s', '3 min 20 s', '2 h 05 min', '2 d 07 h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
