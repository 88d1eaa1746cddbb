"""What a compiled layer needs is looked for before anything is loaded; its kernels are cached for this user alone."""

import os
import sys
import sysconfig
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.errors import UserError
from pretraining.planning.layout import MachineSpec
from pretraining.training.model.compile import (
    CACHE_VARIABLE,
    FLOPS_PER_CORE_SECOND,
    MIN_RUN_MINUTES,
    Compilation,
    choose_compilation,
    compile_layers,
)

CPU = MachineSpec(
    name="", num_processes=2, num_local_processes=2, gpu_bytes=None, gpu_type=None, host_bytes=None
)  # of two cores, below
LONG = 60 * MIN_RUN_MINUTES * 2 * FLOPS_PER_CORE_SECOND


@pytest.fixture(autouse=True)
def headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers of Python, which not every machine has, and no variable that names a compiler."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


def chosen(asked: bool | None = None, **changed: Any) -> Compilation:
    """What is chosen for a long run on two cores, unless something is changed."""
    usual = {"recorded": None, "is_possible": True, "machine": CPU, "flops": LONG, "num_cores": 2}
    return choose_compilation(asked, **{**usual, **changed})


def test_layers_are_compiled_unasked_in_long_runs_on_a_cpu_with_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", "/opt/venv")  # the environment of the tests may be in a path with spaces
    assert chosen() == Compilation(True, "the run is long enough, about 40 min")
    assert chosen(flops=0.98 * LONG) == Compilation(False, "the run is too short")
    assert not chosen(num_cores=3).is_on, "more cores end it sooner"
    assert not chosen(machine=replace(CPU, num_processes=4)).is_on, "the other machine may have no compiler"
    assert not chosen(machine=replace(CPU, gpu_bytes=141 * 10**9)).is_on
    assert not chosen(is_possible=False).is_on
    assert not chosen(is_possible=False, recorded=True).is_on
    monkeypatch.setenv("PATH", "")
    no_compiler = "there is no C++ compiler (g++); install g++, or set CXX to another one"
    assert chosen() == Compilation(False, no_compiler)
    with pytest.raises(UserError, match="--resume: the layers of this run are compiled, but there is no C"):
        chosen(recorded=True)
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", "/home/anna/my project/.venv")
    assert not chosen().is_on, "torch would not link in such a path"


def test_flags_decide_before_the_record_and_that_before_the_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", "/opt/venv")
    assert chosen(True, recorded=False, flops=0.0).is_on
    assert not chosen(False, recorded=True).is_on
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chosen(recorded=True, flops=0.0) == Compilation(True, "as the run was started")
    assert chosen(recorded=False) == Compilation(False, "as the run was started")


def test_kernels_are_cached_where_no_other_user_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch unpickles what it finds there."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **shape))  # type: ignore[arg-type]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "torchinductor_somebody"))  # as torch does when it is imported
    compile_layers(model)
    folder = Path(os.environ[CACHE_VARIABLE])
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    monkeypatch.delenv(CACHE_VARIABLE)
    with pytest.raises(UserError, match="is not a folder that only this user can open"):
        compile_layers(model)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "chosen"))
    compile_layers(model)
    assert os.environ[CACHE_VARIABLE] == str(tmp_path / "chosen")
