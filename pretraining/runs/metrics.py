"""The log of a run: metrics.jsonl, one record a logging step, and the same record as a line for people."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonlines
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.runs.checkpoints import METRICS_NAME

logger = logging.getLogger(__name__)


class MetricsLog(TrainerCallback):
    """Writes every record that the Trainer logs. Only the first process writes."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / METRICS_NAME

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Drop the records after the step that this run goes on from: they are made again."""
        if state.is_world_process_zero and self._path.is_file():
            partial = self._path.with_suffix(".partial")
            with jsonlines.open(self._path) as reader, jsonlines.open(partial, "w") as writer:
                # A kill can leave half a last line, which belongs to a step that is made again.
                records = reader.iter(type=dict, skip_invalid=True)
                writer.write_all(record for record in records if record["step"] <= state.global_step)
            partial.replace(self._path)

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
            with jsonlines.open(self._path, "a") as writer:
                writer.write({name: _json_value(value) for name, value in record.items()})
            line = log_line(record, max_steps=state.max_steps)
            if line is not None:
                logger.info(line)


def _json_value(value: float) -> float | str:
    """JSON has no NaN and no infinity: they are written as the words, which no reader takes for a number."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def log_line(record: Mapping[str, float], *, max_steps: int) -> str | None:
    """A record as a person reads it; None for records that are of interest only in the file."""
    step = f"step {int(record['step']):>{len(str(max_steps))}}/{max_steps}"
    if "loss" in record:
        return "  ".join([step, *_training_figures(record)])
    for prefix, name in (("eval", "validation"), ("test", "test")):
        if f"{prefix}_loss" in record:
            loss, perplexity = record[f"{prefix}_loss"], record[f"{prefix}_perplexity"]
            return f"{step}  {name} loss {loss:.4f}  perplexity {perplexity:,.2f}"
    return None


def _training_figures(record: Mapping[str, float]) -> list[str]:
    figures = [f"loss {record['loss']:.4f}", f"lr {record['learning_rate']:.2e}"]
    if "grad_norm" in record:
        figures.append(f"grad norm {record['grad_norm']:.3f}")
    if "tokens_per_second_per_gpu" in record:
        figures.append(f"{record['tokens_per_second_per_gpu']:,.0f} tokens/s/GPU")
    if "mfu" in record:
        figures.append(f"MFU {100 * record['mfu']:.1f} %")
    if "seconds_left" in record:
        figures.append(f"{duration(record['seconds_left'])} left")
    return figures


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
