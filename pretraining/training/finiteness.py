"""Whether the state of a run is finite: its weights, their fp32 copies, and the optimizer's moments.

A NaN or Inf in them never leaves by itself, and every checkpoint that is saved from then on is worthless. Each process
looks at its own partitions. torch.aminmax reads a tensor once and allocates nothing; it propagates NaN, and an Inf is
always the minimum or the maximum. On two cores it reads 16 GB/s of fp32, torch.isfinite, which writes a mask, 0.6, and
the copy that a save makes 2.0. State that is offloaded to NVMe is not in memory and is not looked at.
"""

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor

from pretraining.training.agreement import gathered

LOOKED_AT = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def non_finite_state(engine: DeepSpeedEngine) -> str | None:
    """Describe the first weight or moment of any process that is not finite; None if all are. Collective."""
    found = next((name for name, tensor in _named_state(engine) if not _is_finite(tensor)), None)
    problems = enumerate(gathered(found))
    return next((f"{name} of process {rank}" for rank, name in problems if name is not None), None)


def _named_state(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """What this process holds of the state, partitioned or not."""
    for name, parameter in engine.module.named_parameters():
        yield name, parameter.data  # small ones stay whole between the steps; the others are empty here
        yield name, parameter.ds_tensor
    for weights in engine.optimizer.fp32_partitioned_groups_flat:
        yield "an fp32 master weight", weights
    for moments in engine.optimizer.optimizer.state.values():
        yield from _named_moments(moments)


def _named_moments(moments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in moments.items():
        if isinstance(value, Tensor):
            yield f"{name} of the optimizer", value


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0 or tensor.dtype not in LOOKED_AT:
        return True
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())
