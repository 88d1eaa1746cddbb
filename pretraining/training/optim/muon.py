"""Muon for weights that ZeRO-3 has partitioned: momentum, then the nearest orthogonal matrix as the update.

Muon (Jordan et al., kellerjordan.github.io/posts/muon) needs whole matrices, of which each process has a part. In turns
of as many matrices as there are processes, each process receives all parts of one matrix, orthogonalizes it, and sends
the parts back: one all-to-all in bf16 each way, and no matrix is computed twice.

DeepSpeed 0.19.8 also has a Muon, but takes the gradient norm over the orthogonal updates: clipping at 1.0 then divides
every step by a number that grows with the model (20 for 0.5 M parameters). Here the gradients are clipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

MOMENTUM = 0.95
NUM_ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan et al.; they bring each singular value to between 0.7 and 1.2
MIN_NORM = 1e-7
# Makes an update as large as one of AdamW, so that both share a learning rate (Moonlight, arXiv 2502.16982, eq. 4).
ADAMW_SCALE = 0.2


class MuonWithAdamW(torch.optim.AdamW):
    """Muon for the parameter groups marked "muon", AdamW for the others."""

    param_groups: list[dict[str, Any]]

    def __init__(self, groups: Sequence[dict[str, Any]], **adamw: Any) -> None:
        super().__init__(groups, **adamw)
        # Now, while the groups hold the model's matrices: ZeRO-3 replaces them by flat partitions.
        self._matrices = [parameter for group in groups if group["muon"] for parameter in group["params"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters of the groups; ZeRO-3 passes one flat partition at a time."""
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                for flat in group["params"]:
                    self._update(flat, group)
        self.param_groups = [group for group in groups if not group["muon"]]
        loss = super().step(closure)
        self.param_groups = groups
        return loss

    def _update(self, flat: Tensor, group: dict[str, Any]) -> None:
        state = self.state[flat]
        if not state:  # AdamW's names, which its loading expects in all states
            state["step"], state["exp_avg"] = torch.tensor(0.0), torch.zeros_like(flat)
        state["step"] += 1
        momentum = state["exp_avg"].lerp_(flat.grad, 1 - MOMENTUM)
        update = flat.grad.lerp_(momentum, MOMENTUM)  # Nesterov's; the gradient is not needed any more
        matrices = self._matrices_in(flat)
        sizes = [matrix.partition_numel() for matrix in matrices]
        _orthogonalize(update, matrices, sizes)
        flat.mul_(1 - group["lr"] * group["weight_decay"])
        for matrix, weights, change in zip(matrices, flat.split(sizes), update.split(sizes), strict=True):
            weights.add_(change, alpha=-group["lr"] * ADAMW_SCALE * math.sqrt(max(matrix.ds_shape)))

    def _matrices_in(self, flat: Tensor) -> list[Tensor]:
        """The matrices whose partitions, one after the other, are `flat`; DeepSpeed names it by the first and last."""
        ids = [str(matrix.ds_id) for matrix in self._matrices]
        first, last = flat.ds_id.split("_")
        return self._matrices[ids.index(first) : ids.index(last) + 1]


def _orthogonalize(update: Tensor, matrices: list[Tensor], sizes: list[int]) -> None:
    """Replace, in place, the partitions of the matrices by those of the orthogonalized matrices."""
    processes = matrices[0].ds_process_group
    rank, num_processes = dist.get_rank(processes), dist.get_world_size(processes)
    offset = 0
    for start in range(0, len(matrices), num_processes):
        turn = sizes[start : start + num_processes]
        parts = update.narrow(0, offset, sum(turn))
        offset += sum(turn)
        here = turn[rank] if rank < len(turn) else 0
        there = turn + [0] * (num_processes - len(turn))
        whole = _exchange(parts, sent=there, received=[here] * num_processes, processes=processes)
        if here:
            shape = matrices[start + rank].ds_shape
            matrix = whole[: shape.numel()].view(shape)  # the rest is padding
            matrix.copy_(orthogonalized(matrix))
        parts.copy_(_exchange(whole, sent=[here] * num_processes, received=there, processes=processes))


def _exchange(parts: Tensor, *, sent: list[int], received: list[int], processes: Any) -> Tensor:
    """All-to-all of parts with the given sizes, in bf16, the dtype of the orthogonalization."""
    device = get_accelerator().current_device_name()  # not that of an offloaded optimizer
    result = torch.empty(sum(received), dtype=torch.bfloat16, device=device)
    dist.all_to_all_single(result, parts.to(device, torch.bfloat16), received, sent, group=processes)
    return result


def orthogonalized(matrix: Tensor) -> Tensor:
    """Approximately the nearest orthogonal matrix, by the Newton-Schulz iteration in bf16."""
    a, b, c = COEFFICIENTS
    is_tall = matrix.size(0) > matrix.size(1)
    x = matrix.bfloat16()
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=MIN_NORM)  # all singular values at most 1
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
