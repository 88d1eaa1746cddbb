"""The flat groups of ZeRO-1 and ZeRO-2, and the gradients that a process keeps of them (DeepSpeed 0.19.8).

Below stage 3 every process has all weights: one flat tensor per parameter group, padded to a multiple of twice the
processes, of which each process updates one equal part. In bf16 with sums in fp32, stage 1 is DeepSpeed's
BF16_Optimizer (runtime/bf16_optimizer.py), otherwise both are its DeepSpeedZeroOptimizer (zero/stage_1_and_2.py). A
test compares this with the storages of real runs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

from pretraining.planning.flops import parameter_shapes
from pretraining.planning.layout import (
    CONTEXT_BYTES,
    FP32_BYTES,
    GRADIENT_BYTES,
    HALF_TYPES,
    USABLE_SHARE,
    TrainingLayout,
)

ALIGNMENT = 2  # weights per process, for NCCL
REDUCED_AT_ONCE = 500_000_000  # gradients of BF16_Optimizer in a message, or a group (MEMORY_OPT_ALLREDUCE_SIZE)


@dataclass(frozen=True)
class FlatGroup:
    """The parameters of a group by their numbers of weights, and the processes that share it."""

    sizes: tuple[int, ...]
    num_processes: int

    @cached_property
    def padded(self) -> int:
        """Weights in the flat tensor."""
        multiple = ALIGNMENT * self.num_processes
        return -(-sum(self.sizes) // multiple) * multiple

    @property
    def partition(self) -> int:
        """Weights that a process updates, padding included."""
        return self.padded // self.num_processes

    def overlapping(self, rank: int) -> list[int]:
        """Weights of each parameter of which the partition of a process has a part."""
        start, end = rank * self.partition, (rank + 1) * self.partition
        bounds = zip(accumulate(self.sizes, initial=0), accumulate(self.sizes), strict=False)
        return [last - first for first, last in bounds if first < end and last > start]


def flat_groups(layout: TrainingLayout) -> list[FlatGroup]:
    """Matrices and embeddings, then vectors, in the order of the model."""
    return _flat_groups(tuple(dimensions for _, dimensions in parameter_shapes(layout.shape)), layout.num_processes)


@lru_cache(maxsize=8)
def _flat_groups(shapes: tuple[tuple[int, ...], ...], num_processes: int) -> list[FlatGroup]:
    groups = (
        tuple(math.prod(dimensions) for dimensions in shapes if (len(dimensions) == 1) is is_vector)
        for is_vector in (False, True)
    )
    return [FlatGroup(sizes, num_processes) for sizes in groups if sizes]


def flattening_bytes(layout: TrainingLayout) -> int:
    """Bytes of the weights and of their flat copy, both of which a process has when it starts."""
    return layout.weight_bytes * sum(sum(group.sizes) + group.padded for group in flat_groups(layout))


def flattens_on_host(layout: TrainingLayout) -> bool:
    """Whether each process flattens the weights in host memory, since its GPU cannot hold both beside its context.

    DeepSpeed asks the device, not --gpu_memory_limit. Its BF16_Optimizer does not ask.
    """
    if layout.stage == 3 or layout.is_bf16_optimizer or layout.device_bytes is None:
        return False
    return flattening_bytes(layout) + CONTEXT_BYTES > USABLE_SHARE * layout.device_bytes


def has_flat_sums(layout: TrainingLayout) -> bool:
    """Whether gradients are summed in a flat fp32 tensor, apart from those of the weights."""
    return layout.grad_accum_dtype == "fp32" and layout.precision in HALF_TYPES


def keeps_sums_on_gpu(layout: TrainingLayout) -> bool:
    """Whether sums of gradients stay on the GPU, though the optimizer may be offloaded.

    Below stage 3 they are copied to host memory once, before the step, unless stage 2 sums them in their own type.
    """
    return not layout.offload_optimizer or layout.stage == 1 or (layout.stage == 2 and has_flat_sums(layout))


def gradient_bytes(layout: TrainingLayout) -> int:
    """Bytes of the sums that a process has after a micro step, of the process with most."""
    groups, each = flat_groups(layout), GRADIENT_BYTES[layout.grad_accum_dtype]
    if layout.is_bf16_optimizer:
        return FP32_BYTES * sum(group.padded for group in groups)
    if layout.stage == 1:  # as many as the weights, in the type of the sums: they are reduced once, before the step
        return each * sum(sum(group.sizes) for group in groups)
    if has_flat_sums(layout):
        return FP32_BYTES * sum(group.partition for group in groups)
    return each * max(_whole_gradients(layout, groups))


def reduced_bytes(layout: TrainingLayout) -> int:
    """Bytes of gradients that stage 1 reduces into another tensor, and stage 2 in each further micro step."""
    if layout.is_bf16_optimizer or (layout.stage == 2 and has_flat_sums(layout)):
        return 0
    groups = flat_groups(layout)
    if has_flat_sums(layout):
        return FP32_BYTES * sum(group.partition for group in groups)
    if layout.offload_optimizer:
        return 0
    return GRADIENT_BYTES[layout.grad_accum_dtype] * max(_whole_gradients(layout, groups))


def message_bytes(layout: TrainingLayout) -> int:
    """Bytes of the copies of gradients in the message that is reduced."""
    if not layout.is_bf16_optimizer:  # a bucket is put together again from its parts, and cast if it is of fp32 sums
        size = min(layout.zero.reduce_bucket_size, sum(sum(group.sizes) for group in flat_groups(layout)))
        is_cast = layout.stage == 1 and has_flat_sums(layout)
        return size * (FP32_BYTES + layout.weight_bytes if is_cast else layout.weight_bytes)
    sizes = [group.padded for group in flat_groups(layout)]
    if sizes[0] > REDUCED_AT_ONCE or len(sizes) == 1:  # sent alone, and only cast
        return layout.weight_bytes * max(sizes)
    return (FP32_BYTES + layout.weight_bytes) * sum(sizes)


def _whole_gradients(layout: TrainingLayout, groups: list[FlatGroup]) -> Iterator[int]:
    """Weights whose gradients each process keeps whole, though it may update a part of them."""
    for rank in range(layout.num_processes):
        yield sum(sum(group.overlapping(rank)) for group in groups)
