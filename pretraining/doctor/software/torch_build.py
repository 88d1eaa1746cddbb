"""The installed torch and the compilers: for which hardware torch was built, and whether it can use the GPUs here."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, ok, warning
from pretraining.doctor.gpu.devices import driver_gpus, open_gpus, query_or_none

CUDA_INSTALL = "python3 -m pip install --force-reinstall --index-url https://download.pytorch.org/whl/{} torch"
BUILDS = {12: "cu128", 13: "cu130"}  # by the CUDA version of the driver; minor versions are compatible
NEWER_DRIVER = "sudo ubuntu-drivers install"
NOT_INITIALIZED = "802"  # cudaErrorSystemNotReady, of machines with NVSwitch
START_FABRIC_MANAGER = "sudo systemctl start nvidia-fabricmanager"
INSPECT_GPUS = "env | grep -E 'CUDA|NVIDIA'; nvidia-smi; ls -l /dev/nvidia*"
COMPILERS = ("c++", "nvcc", "ninja")
VERSION_SECONDS = 2.0
INSTALL_COMPILER = "sudo apt-get install g++"


@dataclass(frozen=True)
class TorchState:
    """What torch and the driver report of the GPUs; CUDA versions of the driver as (13, 0)."""

    version: str
    cuda: str | None
    num_usable: int
    driver_gpus: list[str]
    driver_cuda: tuple[int, int] | None = None
    problem: str = ""


def torch_build(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether torch sees the GPUs that the driver sees."""
    import pynvml
    import torch

    num_usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names, problem, cuda = driver_gpus(), "", None
    if names and torch.version.cuda and not num_usable:
        problem = _cuda_problem()
    if names:
        with open_gpus():
            number = query_or_none(pynvml.nvmlSystemGetCudaDriverVersion)
        cuda = None if number is None else (number // 1000, number % 1000 // 10)
    yield assess(TorchState(torch.__version__, torch.version.cuda, num_usable, names, cuda, problem))


def assess(state: TorchState) -> Finding:
    """Whether torch can use the GPUs that the driver sees, and what to install if not."""
    built = f"{state.version}, built for {f'CUDA {state.cuda}' if state.cuda else 'the CPU'}"
    num_gpus, driver = len(state.driver_gpus), state.driver_cuda
    figures = {"version": state.version, "cuda": state.cuda, "usable_gpus": state.num_usable, "driver_gpus": num_gpus}
    if state.num_usable:
        return ok("torch", f"{built}, uses {state.num_usable} of {num_gpus} GPUs", **figures)
    if not num_gpus:
        return ok("torch", f"{built}; there is no GPU here", **figures)
    build = BUILDS.get(min(driver[0], max(BUILDS))) if driver else BUILDS[max(BUILDS)]
    install = CUDA_INSTALL.format(build) if build else NEWER_DRIVER
    if not state.cuda:
        figure = f"{built}, but the driver sees {num_gpus} GPUs ({state.driver_gpus[0]})"
        return failure("torch", figure, install, **figures)
    figure = f"{built}, cannot use the {num_gpus} GPUs that the driver sees: {state.problem}"
    if driver and driver[0] < int(state.cuda.split(".")[0]):
        figure += f"; the driver is for CUDA up to {driver[0]}.{driver[1]}"
        return failure("torch", figure, install, **figures)
    is_waiting = NOT_INITIALIZED in state.problem
    return failure("torch", figure, START_FABRIC_MANAGER if is_waiting else INSPECT_GPUS, **figures)


def _cuda_problem() -> str:
    import torch

    try:
        torch.cuda.init()
    except RuntimeError as error:
        return " ".join(str(error).split())[:200]
    return "hidden, perhaps by CUDA_VISIBLE_DEVICES"


def compilers(_: Sequence[Path]) -> Iterator[Finding]:
    """A C++ compiler, which only --compile_layers needs: no op of DeepSpeed is compiled in a run."""
    found = {name: _compiler_version(name) for name in COMPILERS if shutil.which(name)}
    shown = ", ".join(f"{name} {version}".strip() for name, version in found.items()) or "none"
    if "c++" in found or not driver_gpus():
        yield ok("compilers", shown, compilers=found)
    else:
        yield warning("compilers", f"{shown}, so --compile_layers is rejected", INSTALL_COMPILER, compilers=found)


def _compiler_version(name: str) -> str:
    done = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
    found = re.search(r"release (\d+\.\d+)|(\d+\.\d+(?:\.\d+)?)", done.stdout)
    return next((version for version in found.groups() if version), "") if found else ""
