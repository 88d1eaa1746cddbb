"""AdamW whose two moments are kept in bf16: 4 bytes a parameter in place of 8, the weights in fp32 as before.

DeepSpeed's own `bf16_optimizer_states` makes the master weights bf16 as well, in which a step of 3e-4 of a weight is
rounded away; here only the moments are. Each update is computed in fp32 and from the moments before they are rounded.
Rounding is to the nearest, so that a run is the same after a resume and for any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
CHUNK = 1 << 25  # elements updated at a time, so that the fp32 copies take 256 MB whatever the size of a partition


class AdamWBf16(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with bf16 moments and fp32 arithmetic."""

    def __init__(
        self, params: Any, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, and undo that torch makes each moment as wide as its parameter; bf16 to fp32 and back is exact."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in MOMENTS:
                state[name] = state[name].to(torch.bfloat16)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        whole = (parameter, parameter.grad, *(state[name] for name in MOMENTS))
        for chunk in zip(*(tensor.view(-1).split(CHUNK) for tensor in whole), strict=True):
            _adamw(*chunk, num_steps=state["step"].item(), group=group)


def _adamw(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, *, num_steps: float, group: dict[str, Any]
) -> None:
    beta1, beta2 = group["betas"]
    exact_mean = mean.float().lerp_(gradient, 1 - beta1)
    exact_square = square.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    mean.copy_(exact_mean)
    square.copy_(exact_square)
    denominator = exact_square.div_(1 - beta2**num_steps).sqrt_().add_(group["eps"])
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    weight.addcdiv_(exact_mean, denominator, value=-group["lr"] / (1 - beta1**num_steps))
