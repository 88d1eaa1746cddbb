"""Detection of NaN and Inf in the state of a run: weights, their fp32 copies and the optimizer's moments.

A NaN or Inf in them never disappears, and every checkpoint saved from then on is worthless. Each process checks its own
partitions. torch.aminmax reads a tensor once and allocates nothing; it propagates NaN, and an Inf is always the minimum
or the maximum. On two cores it reads 16 GB/s of fp32; torch.isfinite, which writes a mask, 0.6; the copy of a save 2.0.
State that is offloaded to NVMe is not in memory and is not checked.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import Tensor

from pretraining.runs.export.zero_shards import layout_of
from pretraining.training.distributed.collectives import all_gather_objects
from pretraining.training.distributed.deepspeed_internals import master_weights, own_partition, parameter_shapes

CHECKED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def non_finite_state(engine: DeepSpeedEngine) -> str | None:
    """Describe the first weight or moment of any process that is not finite; None if all are. Collective."""
    found = next((name for name, tensor in _named_state(engine) if not _is_finite(tensor)), None)
    problems = enumerate(all_gather_objects(found))
    return next((f"{name} of process {rank}" for rank, name in problems if name is not None), None)


def _named_state(engine: DeepSpeedEngine) -> Iterator[tuple[str, Tensor]]:
    """The state of this process without padding, which can be uninitialized memory."""
    parameters, zero = dict(engine.module.named_parameters()), engine.optimizer
    is_stage_3 = engine.zero_optimization_partition_weights()
    # Below stage 3 all of them are whole here; in stage 3 small ones stay whole between the steps, others are empty.
    yield from ((name, parameter.data) for name, parameter in parameters.items())
    layout = layout_of(parameter_shapes(engine), num_processes=dist.get_world_size(), is_stage_3=is_stage_3)
    for name, piece in layout.own_pieces(dist.get_rank()):
        if is_stage_3:
            yield name, own_partition(parameters[name]).flatten()[: piece.length]
        weights = master_weights(zero)[piece.buffer]
        for kind, values in {"fp32 master weight": weights, **zero.optimizer.state.get(weights, {})}.items():
            if isinstance(values, Tensor):
                is_flat = values.shape == weights.shape  # others are a step count, or scales of quantized moments
                yield f"{kind} of {name}", values[piece.offset :][: piece.length] if is_flat else values


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0 or tensor.dtype not in CHECKED_DTYPES:
        return True
    return bool(torch.stack(torch.aminmax(tensor.detach())).isfinite().all())
