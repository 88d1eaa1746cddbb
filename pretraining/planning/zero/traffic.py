"""Bytes that a GPU sends per optimizer step under each stage of ZeRO, and the seconds that take where links are known.

Counted from the calls of DeepSpeed 0.19.8 with NCCL's rings: of N GPUs each sends (N-1)/N of what is gathered or
reduced to partitions, and twice that of what is reduced for all. A ring enters and leaves each machine once, so what a
GPU sends to all others is also what enters and what leaves each machine. A test counts the messages of real runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pretraining.planning.layout import FP32_BYTES, TrainingLayout
from pretraining.planning.model_states import gathered_sizes
from pretraining.planning.zero.flat_groups import flat_groups


@dataclass(frozen=True)
class Sent:
    """Bytes that each GPU sends: to GPUs of all machines, and with hpZ to those of the same machine alone."""

    to_all: float = 0.0
    to_local: float = 0.0

    @property
    def total(self) -> float:
        """Bytes over the links of a GPU."""
        return self.to_all + self.to_local

    def __add__(self, other: "Sent") -> "Sent":
        """Sum both kinds."""
        return Sent(self.to_all + other.to_all, self.to_local + other.to_local)


def sent_per_step(layout: TrainingLayout, num_micro_steps: int) -> Sent:
    """Count an optimizer step of `num_micro_steps`, without evaluations and without the norm and the loss."""
    parts = _sharded(layout, num_micro_steps) if layout.stage == 3 else _replicated(layout, num_micro_steps)
    return sum(parts, Sent())


def _sharded(layout: TrainingLayout, num_micro_steps: int) -> Iterator[Sent]:
    """ZeRO-3: weights are gathered for forward and backward, gradients reduced to partitions, in every micro step.

    Small weights are gathered once, after the step. With hpZ only the first gather of a step is among all.
    """
    large, small = gathered_sizes(layout)
    share, each = _others(layout.num_processes), layout.weight_bytes
    num_gathered = num_micro_steps * (sum(large) + _gathered_again(layout, large))
    yield Sent(num_micro_steps * share * each * (sum(large) + sum(small)))  # gradients
    yield Sent(share * each * sum(small))
    if layout.zero.hpz_partition_size == 1:
        yield Sent(share * each * num_gathered)
    else:
        yield Sent(share * each * sum(large))
        yield Sent(to_local=_others(layout.zero.hpz_partition_size) * each * (num_gathered - sum(large)))


def _gathered_again(layout: TrainingLayout, sizes: list[int]) -> int:
    """Weights that backward gathers: not those of the last layers, which it needs again soon after forward."""
    kept, distance = 0, layout.zero.max_reuse_distance
    for size in reversed(sizes):
        if 2 * (kept + size) > distance:
            break
        kept += size
    return sum(sizes) - kept


def _replicated(layout: TrainingLayout, num_micro_steps: int) -> Iterator[Sent]:
    """Stages 1 and 2: gradients are reduced once per step, or in every micro step; the new weights are gathered."""
    share, groups = _others(layout.num_processes), flat_groups(layout)
    yield Sent(share * layout.weight_bytes * sum(group.padded for group in groups))
    num_reductions = 1 if layout.stage == 1 else num_micro_steps
    if layout.is_bf16_optimizer:
        num_weights, each = sum(group.padded for group in groups), layout.weight_bytes
    else:
        num_weights = sum(sum(group.sizes) for group in groups)
        each = FP32_BYTES if layout.sequence_parallel_size > 1 else layout.weight_bytes
    yield Sent(2 * share * each * num_weights * num_reductions)


def _others(num_processes: int) -> float:
    return (num_processes - 1) / num_processes
