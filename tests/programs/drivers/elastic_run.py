"""Starts pretrain.py, and keeps what each resume of it restored; takes its flags and launchers.

Writes into KEPT, for the first load and each one after: restored-N, a checkpoint saved before anything is trained, and
seed-PROCESS, where random states were made anew. SPIKE_AT=n makes the n-th step of the run look like a spike, once, and
lets a rollback leave out no blocks: then the run must be as if that had not been. With WHOLE the optimizer's state is
taken for one that cannot be divided, as of adamw_8bit. A load fails where the moments of before are still in memory
when torch takes over those of the checkpoint.
"""

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

import pretrain
from pretraining.cli.program import run_program
from pretraining.training.checkpoint import checkpointing, reshard
from pretraining.training.data.loader import BlockStream
from pretraining.training.metrics.spike_detector import Anomaly
from pretraining.training.metrics.step_metrics import StepMetrics, StepResult


def keep_what_is_restored(folder: Path) -> None:
    load, reseed_for_world_size, loads = checkpointing.load_checkpoint, checkpointing.reseed_for_world_size, count(1)

    def load_and_save(engine: Any, checkpoint: Path) -> None:
        with without_earlier_moments(engine.optimizer.optimizer):
            load(engine, checkpoint)
        engine.checkpoint_engine = TorchCheckpointEngine()  # which writes at once
        engine.save_checkpoint(str(folder / f"restored-{next(loads)}"))

    def seed_and_tell(checkpoint: Path, *, seed: int, process: int) -> None:
        reseed_for_world_size(checkpoint, seed=seed, process=process)
        (folder / f"seed-{process}").write_text(str(torch.initial_seed()))

    checkpointing.load_checkpoint, checkpointing.reseed_for_world_size = load_and_save, seed_and_tell


@contextmanager
def without_earlier_moments(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    values = (value for state in optimizer.state.values() for value in state.values())
    earlier = [weakref.ref(value) for value in values if isinstance(value, torch.Tensor)]
    take_over = torch.optim.Optimizer.__setstate__

    def check_and_take_over(self: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        assert not any(reference() is not None for reference in earlier), "two copies of the optimizer state"
        take_over(self, state)

    torch.optim.Optimizer.__setstate__ = check_and_take_over
    try:
        yield
    finally:
        torch.optim.Optimizer.__setstate__ = take_over


def plant_spike(at: int) -> None:
    finish_step, steps = StepMetrics.finish_step, count(1)

    def finish(self: StepMetrics, *, was_skipped: bool) -> StepResult:
        result = finish_step(self, was_skipped=was_skipped)
        return StepResult(result.loss, Anomaly("spike", 99.0)) if next(steps) == at else result

    StepMetrics.finish_step = finish
    BlockStream.skip = lambda *_: None


if __name__ == "__main__":
    keep_what_is_restored(Path(os.environ["KEPT"]))
    if "WHOLE" in os.environ:
        reshard.indivisible_state = lambda _: "state1"
    plant_spike(int(os.environ.get("SPIKE_AT", "0")))
    run_program(pretrain.main)
