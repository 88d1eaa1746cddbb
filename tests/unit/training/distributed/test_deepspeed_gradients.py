"""The norms of gradients are taken from parts of DeepSpeed's optimizers, which the installed version still has."""

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

from pretraining.training.distributed.deepspeed_gradients import watch_gradient_norms


@pytest.mark.parametrize("optimizer", [DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3])
def test_parts_of_the_optimizers(optimizer: type) -> None:
    for name in ("get_grad_norm_direct", "complete_grad_norm_calculation_for_cpu_offload", "get_param_id"):
        assert callable(getattr(optimizer, name))
    assert "self.norm_for_param_grads" in inspect.getsource(optimizer)


def test_parts_of_the_bf16_optimizer() -> None:
    source = inspect.getsource(BF16_Optimizer)
    assert "self.bf16_groups = []" in source
    assert "return non_expert_grads_for_norm, expert_grads_for_norm" in source


def test_padding_between_gradients_has_no_parameter() -> None:
    """ZeRO-2 marks it; ZeRO-1 in fp32 has zeros behind the last gradient."""
    parameters, found = [torch.zeros(2), torch.zeros(1)], []
    padding = torch.zeros(4)
    padding._zero_padding = True  # type: ignore[attr-defined]
    zero = SimpleNamespace(
        get_grad_norm_direct=lambda norms, _parameters: [norm.item() for norm in norms],
        complete_grad_norm_calculation_for_cpu_offload=None,
    )
    engine: Any = SimpleNamespace(optimizer=zero)
    watch_gradient_norms(engine, lambda one, norm: found.append((one.numel(), norm.item())))
    gradients = [torch.tensor([3.0, 4.0]), padding, torch.tensor([2.0]), torch.zeros(3)]
    assert zero.get_grad_norm_direct(gradients, parameters) == [5.0, 2.0]
    assert found == [(2, 5.0), (1, 2.0)]


def test_a_partition_of_padding_only_has_the_norm_zero() -> None:
    """DeepSpeed keeps no norm of it when its optimizer is offloaded; each process must have the same groups."""
    parameters = [torch.zeros(3), torch.zeros(1)]
    found: list[tuple[int, float]] = []
    zero = SimpleNamespace(
        norm_for_param_grads={0: torch.tensor(2.0, dtype=torch.float64)},
        get_param_id=lambda parameter: next(index for index, other in enumerate(parameters) if other is parameter),
        get_grad_norm_direct=None,
        complete_grad_norm_calculation_for_cpu_offload=lambda _parameters: "the total norm",
    )
    engine: Any = SimpleNamespace(optimizer=zero)
    watch_gradient_norms(engine, lambda one, norm: found.append((one.numel(), norm.item())))
    for expected in (2.0, 0.0):
        assert zero.complete_grad_norm_calculation_for_cpu_offload(parameters) == "the total norm"
        assert found == [(3, expected), (1, 0.0)]
        found.clear()
        zero.norm_for_param_grads.clear()
