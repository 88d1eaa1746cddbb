"""Bytes of weights, gradients and optimizer under ZeRO, per process, exactly as DeepSpeed 0.19.8 allocates them.

In stage 3 each parameter is cut into equal partitions, one per process, the last of them padded. Partitions are grouped
into sub-groups, one flat tensor each. (runtime/zero/partition_parameters.py `_partition_param`, runtime/zero/stage3.py;
a test compares this with the storages of real runs.) Stages 1 and 2 have the groups of zero/flat_groups.py.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pretraining.planning.flops import parameter_shapes
from pretraining.planning.layout import FP32_BYTES, GRADIENT_BYTES, TrainingLayout
from pretraining.planning.zero.flat_groups import flat_groups, gradient_bytes

STEP_BYTES = 4  # of the step count of each sub-group
# bitsandbytes keeps two codes of 8 bits per weight, and two fp32 scales per 256 of them (arXiv 2110.02861).
QUANTIZED_BLOCK = 256


@dataclass(frozen=True)
class ModelStates:
    """Bytes of one process, on its GPU or offloaded."""

    weights: int  # partitions in the precision of the forward
    whole_weights: int  # parameters too small to be gathered each time: norms and biases
    second_copy: int  # hpZ's partitions of all weights among the processes of a machine
    gradients: int  # accumulated over micro steps
    gradient_copies: int  # of an offloaded optimizer, in fp32
    master_weights: int  # fp32, of fp32 weights too: DeepSpeed compares a device with its name, and so copies them
    moments: int  # of the optimizer
    updated_weights: int = 0  # of an offloaded optimizer below stage 3, in the precision of the forward


@dataclass(frozen=True)
class SubGroup:
    """Partitions that the optimizer updates at once, as numbers of weights, padding included."""

    partitions: tuple[int, ...]
    is_muon: bool = False

    @property
    def size(self) -> int:
        """Weights in its flat tensor."""
        return sum(self.partitions)


def model_states(layout: TrainingLayout) -> ModelStates:
    """Count what a process keeps from one micro step to the next."""
    groups = sub_groups(layout)
    size = sum(group.size for group in groups)
    if layout.stage < 3:
        return _states_of_flat_groups(layout, size, groups)
    is_whole = layout.num_processes == 1 and not layout.offload_parameters  # the partition
    return ModelStates(
        weights=size * layout.weight_bytes,
        whole_weights=0 if is_whole else sum(gathered_sizes(layout)[1]) * layout.weight_bytes,
        second_copy=_second_copy(layout),
        gradients=size * GRADIENT_BYTES[layout.grad_accum_dtype],
        gradient_copies=size * FP32_BYTES if layout.offload_optimizer else 0,
        master_weights=size * FP32_BYTES,
        moments=sum(_moment_bytes(layout.optimizer, group) for group in groups),
    )


def _states_of_flat_groups(layout: TrainingLayout, size: int, groups: list[SubGroup]) -> ModelStates:
    offloaded = size if layout.offload_optimizer else 0
    return ModelStates(
        weights=sum(group.padded for group in flat_groups(layout)) * layout.weight_bytes,
        whole_weights=0,
        second_copy=0,
        gradients=gradient_bytes(layout),
        gradient_copies=offloaded * FP32_BYTES,
        master_weights=size * FP32_BYTES,
        moments=sum(_moment_bytes(layout.optimizer, group) for group in groups),
        updated_weights=offloaded * layout.weight_bytes,
    )


def _second_copy(layout: TrainingLayout) -> int:
    """Partitions of the parameters that are gathered each time; they are thrown away after a step and made again."""
    if layout.zero.hpz_partition_size == 1:
        return 0
    gathered, _ = gathered_sizes(layout)
    return sum(size // layout.zero.hpz_partition_size for size in gathered) * layout.weight_bytes


def sub_groups(layout: TrainingLayout) -> list[SubGroup]:
    """List what the optimizer updates at once, in order: matrices and embeddings, then vectors, then Muon's matrices.

    Below stage 3 these are the partitions of the flat groups.
    """
    if layout.stage < 3:
        return [SubGroup((group.partition,)) for group in flat_groups(layout)]
    matrices: list[int] = []
    vectors: list[int] = []
    of_layers: list[int] = []
    for name, dimensions in parameter_shapes(layout.shape):
        partition = -(-math.prod(dimensions) // layout.num_processes)
        is_muon = layout.optimizer == "muon" and len(dimensions) == 2 and ".layers." in name
        (of_layers if is_muon else matrices if len(dimensions) == 2 else vectors).append(partition)
    kinds = ((matrices, False), (vectors, False), (of_layers, True))
    size = layout.zero.sub_group_size
    return [SubGroup(tuple(part), is_muon) for partitions, is_muon in kinds for part in _cut(partitions, size)]


def gathered_sizes(layout: TrainingLayout) -> tuple[list[int], list[int]]:
    """Weights, padding included, of the parameters that stage 3 gathers each time, and of those that stay whole."""
    num, threshold = layout.num_processes, layout.zero.param_persistence_threshold
    sizes = [math.prod(dimensions) for _, dimensions in parameter_shapes(layout.shape)]
    gathered = [-(-size // num) * num for size in sizes if size > threshold]
    return gathered, [-(-size // num) * num for size in sizes if size <= threshold]


def largest_parameter(layout: TrainingLayout) -> int:
    """Weights of the largest parameter."""
    return max(math.prod(dimensions) for _, dimensions in parameter_shapes(layout.shape))


def _cut(partitions: list[int], size: int) -> Iterator[list[int]]:
    """Sub-groups of at least `size` weights, except the last."""
    group: list[int] = []
    total = 0
    for partition in partitions:
        group.append(partition)
        total += partition
        if total >= size:
            yield group
            group, total = [], 0
    if group:
        yield group


def _moment_bytes(optimizer: str, group: SubGroup) -> int:
    if optimizer == "adamw_8bit":
        return 2 * group.size + 2 * FP32_BYTES * -(-group.size // QUANTIZED_BLOCK)
    if optimizer == "adamw_bf16" or group.is_muon:
        return 4 * group.size + STEP_BYTES
    return 8 * group.size + STEP_BYTES
