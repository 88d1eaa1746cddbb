"""A run of pretrain.py that does a bare DeepSpeed step after each of its own, and times both.

deepspeed --num_gpus=N --module benchmarks.overhead_run RESULT --flags of pretrain.py. The bare step has the same
engine, micro batches and accumulation; its blocks lie in memory, its loss is that of transformers, and it logs nothing.
Step after step in turns, since the speed of a machine drifts by more from minute to minute than what is measured here.
"""

import itertools
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.started_run import start_run
from pretraining.cli.program import run_program
from pretraining.training.distributed.process_group import shutdown_process_group
from pretraining.training.model.tiling import without_tiling
from pretraining.training.trainer.trainer import PretrainingTrainer

NUM_BATCHES = 8


class BareSteps(TrainerCallback):
    """Must be the last callback, so that all that others do at the end of a step is in its time."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer
        self._ended_at: float | None = None
        size = trainer.run_config.batch.micro_batch_blocks
        blocks = [trainer.data.train[number]["input_ids"] for number in range(NUM_BATCHES * size)]
        self._batches = itertools.cycle(torch.stack(blocks).split(size))
        self.ours: list[float] = []
        self.bare: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """The pretrain.py step is over; do a bare one."""
        began_at = self._now()
        if self._ended_at is not None:
            self.ours.append(began_at - self._ended_at)
        self._bare_step()
        self._ended_at = self._now()
        self.bare.append(self._ended_at - began_at)

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

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def main(argv: Sequence[str]) -> None:
    """Train, and write down the seconds of the steps of both kinds."""
    result_path, trainer = start_run(argv)
    steps = BareSteps(trainer)
    trainer.add_callback(steps)
    trainer.train()
    if trainer.is_world_process_zero():
        pairs = {"ours": steps.ours, "bare": steps.bare[:-1]}
        result_path.write_text(json.dumps(pairs))
    shutdown_process_group()


if __name__ == "__main__":
    run_program(main)
    sys.exit()
