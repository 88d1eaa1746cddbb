"""Ulysses sequence parallelism: consecutive processes share each block; each holds a part of its length.

Around attention the processes of a group exchange their parts, so that each has the whole length for its share of the
heads (DeepSpeed-Ulysses, arXiv 2309.14509); the rest of a Llama works on single positions. For ZeRO-3 these are data
parallel processes like any others, whose micro batches are parts of blocks: the loss is divided by the tokens of the
whole step, so gradients and checkpoints do not change.

The Trainer's `parallelism_config` is not used: in transformers 5.23 with accelerate 1.15 it cannot resume (its loader
has no `dataset`), gives micro steps equal weight whatever their padding, is wrong with ZeRO's `reduce_scatter` off,
drops the document mask under sdpa, and evaluates whole blocks on one GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pretraining.training.data.batch import BOUNDS, Batch, collate_targets


@dataclass(frozen=True)
class SequenceGroup:
    """The processes that share each block, and the rank of this one among them."""

    processes: dist.ProcessGroup
    rank: int
    size: int


def join_sequence_group(size: int, *, timeout_seconds: int) -> SequenceGroup:
    """The group of this process: ranks 0 to size - 1 are the first, and so on. Every process must call this.

    It gets the timeout of the run: torch's 10 minutes for NCCL would end it while rank 0 writes a checkpoint.
    """
    processes, _ = dist.new_subgroups(size, timeout=timedelta(seconds=timeout_seconds))
    return SequenceGroup(processes, rank=dist.get_rank() % size, size=size)


def collate_parts(items: Sequence[Batch], *, rank: int, size: int) -> Batch:
    """Collate items into a batch with targets, and take this process's part of the length (all of it for size 1)."""
    batch = collate_targets(items)
    return batch if size == 1 else part_of_batch(batch, rank=rank, size=size)


def part_of_batch(batch: Batch, *, rank: int, size: int) -> Batch:
    """Part `rank` of `size` of each tensor [batch, length]; positions are added if missing.

    The bounds of documents stay those of the complete rows, which attention computes with.
    """
    positions = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    whole = {"position_ids": positions, **batch}
    return {
        name: tensor if name == BOUNDS else tensor.chunk(size, dim=1)[rank].contiguous()
        for name, tensor in whole.items()
    }


def share_attention(implementation: str, group: SequenceGroup) -> None:
    """Replace `implementation` (any but eager) in this process by one that exchanges heads for length.

    It keeps the name, by which transformers chooses how to call the kernels; DeepSpeed does the same. The bounds of
    documents, if any, are among its options, and are passed on.
    """
    attend = ALL_ATTENTION_FUNCTIONS[implementation]

    def shared(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        # Mask and positions are those of this process's part only, so they are not used. Attention over the whole
        # block is causal.
        heads = [_Exchange.apply(states, group, 1, 2) for states in (query, key, value)]
        options.pop("position_ids")
        output = attend(module, *heads, None, **options)[0]
        return _Exchange.apply(output, group, 1, 2), None

    ALL_ATTENTION_FUNCTIONS[implementation] = shared


class _Exchange(torch.autograd.Function):
    """All-to-all: split along dimension `cut`, one piece per process; concatenate the received along `joined`.

    The gradient is exchanged in the opposite direction.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, group: SequenceGroup, cut: int, joined: int) -> Tensor:
        ctx.group, ctx.cut, ctx.joined = group, cut, joined
        pieces = torch.stack(states.chunk(group.size, dim=cut))
        received = torch.empty_like(pieces)
        dist.all_to_all_single(received, pieces, group=group.processes)
        return torch.cat(received.unbind(), dim=joined)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _Exchange.apply(gradient, ctx.group, ctx.joined, ctx.cut), None, None, None
