"""What torch and MKL read is set before they are imported, so that a run computes the same wherever its memory lies.

What torch.compile starts is looked for where torch and Triton look for it, in this order.
"""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pretraining.cli import packages
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.errors import UserError
from pretraining.system import torch_environment
from pretraining.system.launchers import free_port
from pretraining.system.torch_environment import (
    ALLOCATOR_VARIABLE,
    KERNELS_VARIABLE,
    OLD_ALLOCATOR_VARIABLES,
    compiler_problem,
    use_expandable_segments,
    use_reproducible_kernels,
)
from tests.conftest import PROJECT_DIR, run_fine
from tests.fakes.preloads import compiled
from tests.programs.launching import figures, run_forked_fine, train


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


# Prints what torch would start for each PATH.
COMPILERS = """
import os, sys
os.environ.pop("CXX", None)
from torch._inductor.cpp_builder import cpp_compiler_search, get_cpp_compiler
for os.environ["PATH"] in sys.argv[1:]:
    cpp_compiler_search.cache_clear()
    try:
        print(get_cpp_compiler())
    except Exception as error:
        print(type(error).__name__)
"""


def test_torch_starts_the_compiler_that_is_looked_for(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name that answers is all it takes; torch reads CXX when it is imported."""
    (machine / "Python.h").touch()
    folders = [machine / f"only-{name}" for name in ("c++", "clang++", "g++")]
    has_problem = []
    for folder in folders:
        folder.mkdir()
        program = folder / folder.name.removeprefix("only-")
        program.write_text("#!/bin/sh\nexit 0\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        has_problem.append(compiler_problem() is not None)
    (machine / "compilers.py").write_text(COMPILERS)
    monkeypatch.undo()  # the process that forks keeps the PATH with which it starts
    found = run_forked_fine(sys.executable, machine / "compilers.py", *folders).stdout.split()
    assert found == ["InvalidCxxCompiler", "InvalidCxxCompiler", "g++"]
    assert has_problem == [True, True, False]


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


def test_kernels_are_reproducible_where_mkl_is(
    described: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KERNELS_VARIABLE, "")  # so that it is taken back after the test
    monkeypatch.delenv(KERNELS_VARIABLE)
    use_reproducible_kernels()
    assert os.environ.get(KERNELS_VARIABLE) == described[1]
    monkeypatch.setenv(KERNELS_VARIABLE, "AUTO")
    use_reproducible_kernels()
    assert os.environ[KERNELS_VARIABLE] == "AUTO", "the user's own setting stays"


# The same numbers at every place in a cache line and beyond: products of the shapes of a small model.
PRODUCTS = """
import torch
from pretraining.system.torch_environment import use_reproducible_kernels
use_reproducible_kernels()
torch.manual_seed(0)

def moved(values, by):
    flat = torch.empty(values.numel() + 64)
    begin = (-flat.data_ptr() // 4) % 16 + by
    return flat[begin : begin + values.numel()].view(values.shape).copy_(values)

shapes = [(1, 192, 192), (17, 192, 100), (512, 192, 512), (512, 512, 192), (33, 576, 1024)]
for threads, (rows, inner, columns) in [(threads, shape) for threads in (2, 1) for shape in shapes]:
    torch.set_num_threads(threads)
    left, right = torch.randn(rows, inner), torch.randn(columns, inner)
    for product in (torch.nn.functional.linear, lambda left, right: (left.t() @ moved(left, 3), right.sum(0))[0]):
        expected = product(moved(left, 0), moved(right, 0))
        for by in ((0, 1), (1, 7), (3, 16), (8, 48), (5, 5)):
            assert torch.equal(product(moved(left, by[0]), moved(right, by[1])), expected), (threads, rows, by)
flat = left.flatten()
assert torch.equal(torch.dot(moved(flat, 5), moved(flat, 1)), torch.dot(flat, flat))
"""


def test_a_product_depends_on_its_values_alone() -> None:
    run_fine(sys.executable, "-c", PRODUCTS, env={"OMP_NUM_THREADS": "2"})


# Long: test_a_product_depends_on_its_values_alone holds the same of each product.
@pytest.mark.long
@pytest.mark.launch
def test_a_run_is_the_same_wherever_its_memory_lies(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, sample_store: Path
) -> None:
    env = {"LD_PRELOAD": str(compiled("shifted_memory.c", tmp_path_factory)), "OMP_NUM_THREADS": "2"}
    runs = []
    for lines in (0, 1, 7):
        run_dir = tmp_path / str(lines)
        train("fork", sample_store, run_dir, env=env | {"SHIFTED_LINES": str(lines)})
        runs.append(figures(run_dir))
    assert runs[0] == runs[1] == runs[2]


# As if there were six cores.
THREADS = """
import os, sys
from pretraining.cli.program import run_program
from pretraining.system import torch_environment
torch_environment.compute_cores = lambda: 6
run_program(lambda _: print(os.environ["OMP_NUM_THREADS"], "torch" in sys.modules))
"""


THREADS_OF_TORCH = """
import os, sys
from pretraining.cli.program import run_program
from pretraining.system import torch_environment
torch_environment.compute_cores = lambda: 6
def main(_):
    import torch
    sys.stdout.write(f"threads {os.environ['OMP_NUM_THREADS']} {torch.get_num_threads()}\\n")
run_program(main)
"""


# Long: test_the_one_thread_of_a_launcher_is_replaced holds it without torch.
@pytest.mark.long
def test_the_one_thread_of_torchrun_is_replaced_and_that_of_the_user_is_kept(tmp_path: Path) -> None:
    """As if there were six cores for two processes; the threads are those of a process that was told so by hand."""
    script = tmp_path / "threads.py"
    script.write_text(THREADS_OF_TORCH)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(PROJECT_DIR)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]

    def threads(*launcher: str, **extra: str) -> set[str]:
        done = subprocess.run(
            [*launcher, script], env={**environment, **extra}, capture_output=True, text=True, check=True
        )
        return set(re.findall(r"threads \d+ \d+", done.stdout))

    assert threads(*torchrun) == threads(sys.executable, OMP_NUM_THREADS="3")
    assert threads(*torchrun, OMP_NUM_THREADS="1") == {"threads 1 1"}


@pytest.mark.parametrize(("chosen", "expected"), [({}, "6"), ({"OMP_NUM_THREADS": "1"}, "1")])
def test_the_one_thread_of_a_launcher_is_replaced(chosen: dict[str, str], expected: str) -> None:
    """A shell in place of torchrun: a 1 that its own environment has is the user's."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"TORCHELASTIC_RUN_ID": "run", **chosen}
    command = ["sh", "-c", 'OMP_NUM_THREADS=1 "$@"; exit $?', "sh", sys.executable, "-c", THREADS]
    done = subprocess.run(command, cwd=PROJECT_DIR, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{expected} False\n"


def test_every_program_computes_on_its_share() -> None:
    command = [sys.executable, "-c", THREADS]
    env = {"LOCAL_SIZE": "2", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for extra, expected in (({}, 6), (env, 3), ({"OMP_NUM_THREADS": "7"}, 7)):
        told = subprocess.run(
            command, cwd=PROJECT_DIR, env={**environment, **extra}, capture_output=True, text=True, check=True
        ).stdout
        assert told == f"{expected} False\n"


def test_segments_can_grow_where_there_is_a_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (ALLOCATOR_VARIABLE, *OLD_ALLOCATOR_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch_environment, "DRIVER_DEVICE", tmp_path / "nvidiactl")
    use_expandable_segments()
    assert ALLOCATOR_VARIABLE not in os.environ
    (tmp_path / "nvidiactl").touch()
    use_expandable_segments()
    assert os.environ[ALLOCATOR_VARIABLE] == "expandable_segments:True"
    monkeypatch.delenv(ALLOCATOR_VARIABLE)


@pytest.mark.parametrize("name", [ALLOCATOR_VARIABLE, *OLD_ALLOCATOR_VARIABLES])
def test_a_setting_of_the_allocator_is_kept(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for each in (ALLOCATOR_VARIABLE, *OLD_ALLOCATOR_VARIABLES):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "max_split_size_mb:512")
    monkeypatch.setattr(torch_environment, "DRIVER_DEVICE", tmp_path)
    use_expandable_segments()
    assert os.environ[name] == "max_split_size_mb:512"
    assert name == ALLOCATOR_VARIABLE or ALLOCATOR_VARIABLE not in os.environ
