"""The norm of each parameter's gradient, out of the private parts of DeepSpeed's three ZeRO optimizers (0.19.8).

Part of the review of deepspeed_internals.py at an upgrade.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.utils import get_norm_dtype
from torch import Tensor


def watch_gradient_norms(engine: DeepSpeedEngine, watch: Callable[[Tensor, Tensor], None]) -> None:
    """Pass `watch` each parameter and the norm of its partition's gradient in every step (runtime/zero/stage3.py).

    ZeRO-3 sums their squares to the total norm: no gradient is read twice. An offloaded optimizer keeps them by
    parameter, but not of those of which this process has padding only: theirs are zero. Otherwise they are taken here
    as DeepSpeed does, which then takes the norm of each number: the number. Below stage 3 a process has partitions of
    some parameters only (runtime/zero/stage_1_and_2.py), or whole gradients (runtime/bf16_optimizer.py).
    """
    zero = engine.optimizer
    if isinstance(zero, BF16_Optimizer):
        _watch_whole_gradients(zero, watch)
        return
    total_norm, total_norm_of_offloaded = zero.get_grad_norm_direct, zero.complete_grad_norm_calculation_for_cpu_offload

    def direct(gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> Any:
        own = [gradient for gradient in gradients if not getattr(gradient, "_zero_padding", False)]  # of ZeRO-1 and 2
        norms = [gradient.to(get_norm_dtype()).norm(2) for gradient in own[: len(parameters)]]  # then more padding
        for parameter, norm in zip(parameters, norms, strict=True):
            watch(parameter, norm)
        return total_norm(norms, parameters)

    def offloaded(parameters: Sequence[Tensor]) -> Any:
        norms = zero.norm_for_param_grads
        other = next(iter(norms.values()), torch.zeros(()))
        no_norm = torch.zeros_like(torch.as_tensor(other))  # on the device of the others: they are stacked
        for parameter in parameters:
            watch(parameter, norms.get(zero.get_param_id(parameter), no_norm))
        return total_norm_of_offloaded(parameters)

    zero.get_grad_norm_direct = direct
    zero.complete_grad_norm_calculation_for_cpu_offload = offloaded


def _watch_whole_gradients(zero: BF16_Optimizer, watch: Callable[[Tensor, Tensor], None]) -> None:
    """Every process has the gradients of all processes and all weights, so those of the first one count."""
    gradients_for_norm, is_counted = zero.get_grads_for_norm, dist.get_rank() == 0

    def norms(for_clipping: bool = False) -> Any:
        found = gradients_for_norm(for_clipping)
        if for_clipping:
            return found
        gradients, of_experts = found
        own = [gradient.norm(2) for gradient in gradients]
        for parameter, norm in zip(chain.from_iterable(zero.bf16_groups), own, strict=True):
            watch(parameter, norm if is_counted else torch.zeros_like(norm))
        return own, of_experts

    zero.get_grads_for_norm = norms
