"""Bytes of weights, gradients and optimizer under ZeRO-3, on one process, exactly as DeepSpeed 0.19.8 allocates them.

A parameter is cut into as many equal partitions as there are processes, the last of them padded; partitions stand in
sub-groups, one flat tensor each. (runtime/zero/partition_parameters.py `_partition_param`, runtime/zero/stage3.py; a
test holds it to the storages of real runs.)
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pretraining.planning.flops import parameter_shapes
from pretraining.planning.layout import TrainingLayout

FP32_BYTES = 4
GRADIENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}  # in which micro steps are added up
STEP_BYTES = 4  # each sub-group counts its steps
# bitsandbytes keeps two codes of 8 bits a weight, and two fp32 scales for each 256 of them (arXiv 2110.02861).
QUANTIZED_BLOCK = 256


@dataclass(frozen=True)
class ModelStates:
    """Bytes of one process, wherever they lie."""

    weights: int  # its partitions, in the precision of the forward
    whole_weights: int  # parameters too small to be gathered each time: norms and biases
    gradients: int  # in which micro steps are added up
    gradient_copies: int  # of an offloaded optimizer, in fp32
    master_weights: int  # fp32, of fp32 weights too: DeepSpeed compares a device with its name, and so copies them
    moments: int  # what the optimizer keeps of the past

    @property
    def optimizer(self) -> int:
        """What is offloaded with the optimizer."""
        return self.gradients + self.gradient_copies + self.master_weights + self.moments


@dataclass(frozen=True)
class SubGroup:
    """Partitions that the optimizer updates at once, as numbers of weights, padding and all."""

    partitions: tuple[int, ...]
    is_muon: bool = False

    @property
    def size(self) -> int:
        """Weights in its flat tensor."""
        return sum(self.partitions)


def model_states(layout: TrainingLayout) -> ModelStates:
    """What a process keeps between two steps."""
    groups = sub_groups(layout)
    size = sum(group.size for group in groups)
    return ModelStates(
        weights=size * layout.weight_bytes,
        whole_weights=sum(whole_sizes(layout)) * layout.weight_bytes,
        gradients=size * GRADIENT_BYTES[layout.grad_accum_dtype],
        gradient_copies=size * FP32_BYTES if layout.offload_optimizer else 0,
        master_weights=size * FP32_BYTES,
        moments=sum(_moment_bytes(layout.optimizer, group) for group in groups),
    )


def sub_groups(layout: TrainingLayout) -> list[SubGroup]:
    """The sub-groups in their order: matrices and embeddings first, then vectors, and Muon's matrices last."""
    matrices: list[int] = []
    vectors: list[int] = []
    of_layers: list[int] = []
    for name, dimensions in parameter_shapes(layout.shape):
        partition = -(-math.prod(dimensions) // layout.num_processes)
        is_muon = layout.optimizer == "muon" and len(dimensions) == 2 and ".layers." in name
        (of_layers if is_muon else matrices if len(dimensions) == 2 else vectors).append(partition)
    groups = [*_cut(matrices, layout.zero.sub_group_size), *_cut(vectors, layout.zero.sub_group_size)]
    found = [SubGroup(tuple(partitions)) for partitions in groups]
    return found + [SubGroup(tuple(part), is_muon=True) for part in _cut(of_layers, layout.zero.sub_group_size)]


def whole_sizes(layout: TrainingLayout) -> list[int]:
    """Weights, with padding, of each parameter that every process keeps as a whole besides its partition."""
    if layout.num_processes == 1 and not layout.offload_parameters:
        return []  # the partition is the whole
    sizes = [math.prod(dimensions) for _, dimensions in parameter_shapes(layout.shape)]
    num = layout.num_processes
    return [-(-size // num) * num for size in sizes if size <= layout.zero.param_persistence_threshold]


def largest_parameter(layout: TrainingLayout) -> int:
    """Weights of the largest parameter."""
    return max(math.prod(dimensions) for _, dimensions in parameter_shapes(layout.shape))


def _cut(partitions: list[int], size: int) -> Iterator[list[int]]:
    """Sub-groups of at least `size`, but the last."""
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
