"""What torch.compile starts is looked for where torch and Triton look for it, in this order."""

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pretraining.cli import packages
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.errors import UserError
from pretraining.system.compilers import compiler_problem


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without anything that compiles: the only folder of PATH, and that of the headers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(sys, "prefix", "/opt/venv")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    return tmp_path


def test_all_that_is_missing_is_found_one_after_the_other(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"triton": None}
    monkeypatch.setattr(importlib.util, "find_spec", modules.__getitem__)
    (machine / "c++").touch(mode=0o755)
    assert compiler_problem() == "there is no C++ compiler (g++); install g++, or set CXX to another one"
    monkeypatch.setenv("CXX", "c++")
    assert compiler_problem() == f"Python.h is not in {machine}; install the headers of this Python, e.g. python3-dev"
    (machine / "Python.h").touch()
    assert compiler_problem() is None
    assert str(compiler_problem(on_gpu=True)).startswith("the package triton is missing")
    modules["triton"] = "a spec"
    assert str(compiler_problem(on_gpu=True)).startswith("there is no C compiler (gcc, clang); install gcc")
    (machine / "clang").touch(mode=0o755)
    assert compiler_problem(on_gpu=True) is None
    monkeypatch.setenv("CC", "icx")
    assert str(compiler_problem(on_gpu=True)).startswith("there is no C compiler (CC=icx);")
    monkeypatch.setattr(sys, "prefix", "/home/anna/my project/.venv")
    assert "contains spaces" in str(compiler_problem())


@pytest.mark.parametrize("name", ["c++", "clang++", "g++"])
def test_torch_starts_the_compiler_that_is_looked_for(
    machine: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A program of that name that answers is all it takes; torch reads CXX when it is imported."""
    (machine / "Python.h").touch()
    (machine / name).write_text("#!/bin/sh\nexit 0\n")
    (machine / name).chmod(0o755)
    script = "from torch._inductor.cpp_builder import get_cpp_compiler; print(get_cpp_compiler())"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (found.returncode == 0) == (compiler_problem() is None) == (name == "g++")
    assert found.returncode == 0 or "InvalidCxxCompiler" in found.stderr


@pytest.mark.parametrize(("flags", "num_problems"), [([], 1), (["--use_cpu"], 0)])
def test_a_gpu_needs_what_triton_needs_before_anything_is_loaded(
    machine: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], num_problems: int
) -> None:
    (machine / "Python.h").touch()
    (machine / "g++").touch(mode=0o755)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(packages, "driver_gpu_names", lambda: ["NVIDIA H200"])
    words = ["--compile_layers", *flags]
    if num_problems == 0:
        assert parse_pretrain_arguments("", words).model.compile_layers
        return
    with pytest.raises(UserError, match=r"--compile_layers: .*(triton is missing|no C compiler).*, or remove the flag"):
        parse_pretrain_arguments("", words)
