"""What a compiled layer needs is looked for before anything is loaded."""

import importlib.util

import pytest

from pretraining.cli.errors import UserError
from pretraining.training.layers import check_kernels


def test_what_is_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    if importlib.util.find_spec("liger_kernel") is not None:
        pytest.skip("liger-kernel is installed")
    with pytest.raises(UserError) as caught:
        check_kernels(compiled=True, liger=True)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["--compile_layers", "--use_liger_kernel"]
    check_kernels(compiled=False, liger=False)
