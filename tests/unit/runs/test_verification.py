"""Every tensor with NaN or infinity is counted, and the first three are named."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pretraining.runs.verification import CHUNK_ITEMS, model_problems


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        ([], None),
        (["b"], "1 tensor (b)"),
        (["b", "a", "d"], "3 tensors (a, b, d)"),
        (["a", "b", "c", "d", "e"], "5 tensors (a, b, c, ...)"),
    ],
)
def test_all_tensors_that_are_not_finite_are_reported(tmp_path: Path, bad: list[str], shown: str | None) -> None:
    weights = {name: torch.ones(3, 4, dtype=torch.bfloat16) for name in "abcde"}
    for place, name in enumerate(bad):
        weights[name][2, 3] = float("nan") if place % 2 else float("-inf")
    (tmp_path / "config.json").write_text("{}")
    save_file({**weights, "counts": torch.arange(3)}, tmp_path / "model.safetensors")
    expected = [] if shown is None else [f"model.safetensors is damaged: NaN or infinity in {shown}"]
    assert model_problems(tmp_path) == expected


def test_the_last_value_of_a_large_tensor_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    large = torch.zeros(CHUNK_ITEMS + 1, dtype=torch.float16)
    large[-1] = float("inf")
    save_file({"large": large}, tmp_path / "model.safetensors")
    (problem,) = model_problems(tmp_path)
    assert problem.endswith("NaN or infinity in 1 tensor (large)")
