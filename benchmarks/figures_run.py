"""A run of pretrain.py that leaves out, at every second step, the figures of its log that cost something; times both.

deepspeed --num_gpus=N --module benchmarks.figures_run RESULT --flags of pretrain.py. Left out are the split of the
time, memory, utilisation, power and energy with their gather, and so what they take in metrics.jsonl, TensorBoard and
the line on the terminal. What a step takes begins when the callbacks of the one before are through: its record is
written then. Without a GPU its time is that of the processor, in which nothing counts that others do on the machine:
what is looked for is smaller than that.
"""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.started_run import start_run
from pretraining.cli.program import run_program
from pretraining.training.distributed.process_group import shutdown_process_group
from pretraining.training.metrics.throughput import Part
from pretraining.training.trainer.trainer import PretrainingTrainer


class FewerFigures(TrainerCallback):
    """Must be the last callback, so that all that others do at the end of a step is in its time."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer
        self._began_at: float | None = None
        self._is_whole = True
        self.seconds: dict[bool, list[float]] = {True: [], False: []}

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """A step is over; make the record of it, and the next one, the other way."""
        now = self._now()
        if self._began_at is not None:
            self.seconds[self._is_whole].append(now - self._began_at)
        self._is_whole = not self._is_whole
        (self._put_back if self._is_whole else self._leave_out)()
        self._began_at = self._now()

    def _leave_out(self) -> None:
        """Stand-ins on the objects hide the methods of their classes."""
        times: Any = self._trainer.meter.times
        times.enter, times.part, times.take = _no_part, _nothing_timed, dict
        machine: Any = self._trainer.hardware_metrics
        machine.take = dict

    def _put_back(self) -> None:
        times = self._trainer.meter.times
        for name in ("enter", "part", "take"):
            delattr(times, name)
        delattr(self._trainer.hardware_metrics, "take")

    def _now(self) -> float:
        if not torch.cuda.is_available():
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def _no_part(_part: Part) -> Part:
    return "other"


def _nothing_timed(_part: Part) -> Any:
    return nullcontext()


def main(argv: Sequence[str]) -> None:
    """Train, and write down the seconds of the steps of both kinds."""
    result_path, trainer = start_run(argv)
    steps = FewerFigures(trainer)
    trainer.add_callback(steps)
    trainer.train()
    if trainer.is_world_process_zero():
        num_pairs = min(map(len, steps.seconds.values()))
        pairs = {"ours": steps.seconds[True][:num_pairs], "bare": steps.seconds[False][:num_pairs]}
        result_path.write_text(json.dumps(pairs))
    shutdown_process_group()


if __name__ == "__main__":
    run_program(main)
    sys.exit()
