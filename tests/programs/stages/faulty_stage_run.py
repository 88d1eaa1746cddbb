"""Starts pretrain.py with the fault that FAULT names: one that a release of DeepSpeed had below stage 3, or a NaN.

What was lost is lost here as well, by other means: the faults themselves are fixed in the installed version.
"""

import os
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

import pretrain
from pretraining.cli.program import run_program


def lose_last_micro_step() -> None:
    """ZeRO-1 in bf16 reduced the gradients before it added those of the last micro step (issue 7985)."""
    backward = DeepSpeedEngine.backward

    def faulty(engine: DeepSpeedEngine, loss: Any, **options: Any) -> Any:
        return backward(engine, loss * (not engine.is_gradient_accumulation_boundary()), **options)

    DeepSpeedEngine.backward = faulty


def lose_earlier_micro_steps() -> None:
    """ZeRO-2 updated with the gradients of the last micro step alone (issue 7718)."""
    epilogue = DeepSpeedZeroOptimizer.independent_gradient_partition_epilogue

    def faulty(zero: DeepSpeedZeroOptimizer) -> None:
        zero.all_grad_tensors.clear()
        epilogue(zero)

    DeepSpeedZeroOptimizer.independent_gradient_partition_epilogue = faulty


def lose_second_use() -> None:
    """ZeRO-2 reduced what a weight had from one of its two uses alone (issue 8224); the tied head is the largest."""
    process = DeepSpeedZeroOptimizer.process_gradients

    def faulty(zero: DeepSpeedZeroOptimizer, parameter: Any, group: int) -> None:
        if parameter.numel() == max(other.numel() for other in zero.bit16_groups[0]):
            parameter.grad *= 0.5
        process(zero, parameter, group)

    DeepSpeedZeroOptimizer.process_gradients = faulty


def make_nan() -> None:
    """No fault of DeepSpeed: one process has a NaN in each micro step of step 2."""
    backward = DeepSpeedEngine.backward

    def faulty(engine: DeepSpeedEngine, loss: Any, **options: Any) -> Any:
        is_due = engine.global_rank == 1 and engine.global_steps == 1
        return backward(engine, loss * torch.nan if is_due else loss, **options)

    DeepSpeedEngine.backward = faulty


FAULTS = {
    "nan": make_nan,
    "last": lose_last_micro_step,
    "earlier": lose_earlier_micro_steps,
    "second use": lose_second_use,
}

if __name__ == "__main__":
    FAULTS[os.environ["FAULT"]]()
    run_program(pretrain.main)
