"""What a compiled layer needs is looked for before anything is loaded."""

import importlib.util
from dataclasses import replace

import pytest

from pretraining.cli.errors import UserError
from pretraining.training.layers import check_kernels
from tests.machine.layouts import layout_of


def test_what_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    layout = layout_of("llama2_7b")
    if importlib.util.find_spec("liger_kernel") is not None:
        pytest.skip("liger-kernel is installed")
    with pytest.raises(UserError) as caught:
        check_kernels(replace(layout, compiles_layers=True), liger=True)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["--compile_layers", "--use_liger_kernel"]
    check_kernels(layout, liger=False)
