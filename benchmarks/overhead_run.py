"""A run of pretrain.py whose steps alternate with another kind of step; times both.

deepspeed --num_gpus=N --module benchmarks.overhead_run RESULT KIND --flags of pretrain.py. KIND is

- engine: after each step, a bare DeepSpeed step with the same engine, micro batches and accumulation. Its blocks are in
  memory, its loss is that of transformers, and it logs nothing.
- metrics: every second step logs only losses and speed, without the time breakdown, memory, utilization, power and
  energy and their all-gather. A step is timed from the end of the callbacks of the step before, which write its record.
  Without a GPU the time is CPU time of the process: the difference is smaller than the noise of a shared machine.

Steps alternate because the speed of a machine drifts more from minute to minute than the difference.
"""

import itertools
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.started_run import MeasuringCallback, measure_run
from pretraining.cli.program import run_program
from pretraining.training.metrics.throughput import Part
from pretraining.training.model.tiling import without_tiling
from pretraining.training.trainer.trainer import PretrainingTrainer

NUM_BATCHES = 8


class BareSteps(MeasuringCallback):
    """Make a bare DeepSpeed step after each step."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer
        self._ended_at: float | None = None
        size = trainer.run_config.batch.micro_batch_blocks
        blocks = [trainer.data.train[number]["input_ids"] for number in range(NUM_BATCHES * size)]
        self._batches = itertools.cycle(torch.stack(blocks).split(size))
        self._ours: list[float] = []
        self._bare: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Make a bare step."""
        started_at = _synchronized_seconds()
        if self._ended_at is not None:
            self._ours.append(started_at - self._ended_at)
        self._bare_step()
        self._ended_at = _synchronized_seconds()
        self._bare.append(self._ended_at - started_at)

    def result(self) -> dict[str, list[float]]:
        """Seconds of both kinds; a bare step is paired with the step after it."""
        return {"ours": self._ours, "bare": self._bare[:-1]}

    def _bare_step(self) -> None:
        engine = self._trainer.model_wrapped
        num_micro_steps = self._trainer.run_config.batch.gradient_accumulation_steps
        for number in range(1, num_micro_steps + 1):
            ids = next(self._batches).to(engine.device)
            engine.set_gradient_accumulation_boundary(is_boundary=number == num_micro_steps)
            with without_tiling(self._trainer.model):
                loss = engine(input_ids=ids, labels=ids).loss
            engine.backward(loss)
            engine.step()


class FewerMetrics(MeasuringCallback):
    """Remove the costly metrics from every second step."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer
        self._started_at: float | None = None
        self._has_all_metrics = True
        self._seconds: dict[bool, list[float]] = {True: [], False: []}

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Write the record of this step, and make the next one the other way."""
        if self._started_at is not None:
            self._seconds[self._has_all_metrics].append(self._now() - self._started_at)
        self._has_all_metrics = not self._has_all_metrics
        (self._restore if self._has_all_metrics else self._remove)()
        self._started_at = self._now()

    def result(self) -> dict[str, list[float]]:
        """Seconds of both kinds."""
        num_pairs = min(map(len, self._seconds.values()))
        return {"ours": self._seconds[True][:num_pairs], "bare": self._seconds[False][:num_pairs]}

    def _remove(self) -> None:
        """Hide methods of classes by attributes of the objects."""
        times: Any = self._trainer.meter.times
        times.enter, times.part, times.take = _no_part, _no_timer, dict
        machine: Any = self._trainer.hardware_metrics
        machine.take = dict

    def _restore(self) -> None:
        times = self._trainer.meter.times
        for name in ("enter", "part", "take"):
            delattr(times, name)
        delattr(self._trainer.hardware_metrics, "take")

    def _now(self) -> float:
        return _synchronized_seconds() if torch.cuda.is_available() else time.process_time()


def _synchronized_seconds() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _no_part(_part: Part) -> Part:
    return "other"


def _no_timer(_part: Part) -> Any:
    return nullcontext()


def main(argv: Sequence[str]) -> None:
    """Train, and write the seconds of the steps of both kinds."""
    result, kind, *flags = [word for word in argv if not word.startswith("--local_rank")]
    measure_run([result, *flags], {"engine": BareSteps, "metrics": FewerMetrics}[kind])


if __name__ == "__main__":
    run_program(main)
    sys.exit()
