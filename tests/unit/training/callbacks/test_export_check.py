"""An export is compared with the weights in training bit for bit, NaN too, and broken weights are named as such."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pretraining.training.callbacks.export_check import first_mismatched_tensor, non_finite_weight

NAN, OTHER_NAN = (torch.tensor([bits], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_bits_are_the_same_weight(dtype: torch.dtype, tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, torch.nan], [torch.inf, -0.0]]).to(dtype)
    save_file({"a": weight, "b": weight[:1].clone()}, tmp_path / "model.safetensors")
    assert first_mismatched_tensor(tmp_path, {"a": weight, "b": weight[:1].clone()}) is None
    for other in (weight.abs(), weight.T, weight.flatten(), weight.to(torch.float64)):
        assert first_mismatched_tensor(tmp_path, {"a": other, "b": weight[:1].clone()}) == "a"


def test_bits_are_compared_and_not_values(tmp_path: Path) -> None:
    save_file({"a": NAN}, tmp_path / "model.safetensors")
    assert first_mismatched_tensor(tmp_path, {"a": NAN}) is None
    assert first_mismatched_tensor(tmp_path, {"a": OTHER_NAN}) == "a"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_named(value: float) -> None:
    sound = torch.ones(3)
    assert non_finite_weight({"a": sound, "b": sound}) is None
    assert non_finite_weight({"a": sound, "b": torch.tensor([1.0, value])}) == "b"
