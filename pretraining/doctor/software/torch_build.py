"""The installed torch and the compilers: for which hardware torch was built, and whether it can use the GPUs here."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, ok, warning, warning_if
from pretraining.doctor.gpu.devices import NO_DRIVER, ask, driver_gpus, num_nvidia_devices, open_gpus
from pretraining.system.compilers import INSTALL_COMPILERS, compiler_problem

CUDA_INSTALL = "python3 -m pip install --force-reinstall --index-url https://download.pytorch.org/whl/{} torch"
BUILDS = {12: "cu128", 13: "cu130"}  # by the CUDA version of the driver; minor versions are compatible
NEWER_DRIVER = "sudo ubuntu-drivers install"
NOT_INITIALIZED = "802"  # cudaErrorSystemNotReady, of machines with NVSwitch
START_FABRIC_MANAGER = "sudo systemctl start nvidia-fabricmanager"
INSPECT_GPUS = "env | grep -E 'CUDA|NVIDIA'; nvidia-smi; ls -l /dev/nvidia*"
COMPILERS = ("g++", "gcc", "clang", "nvcc", "ninja")
VERSION_SECONDS = 2.0


@dataclass(frozen=True)
class TorchState:
    """What torch and the driver report of the GPUs; CUDA versions of the driver as (13, 0).

    `num_devices` are those on the PCI bus, with or without a driver.
    """

    version: str
    cuda: str | None
    num_usable: int
    driver_gpus: list[str]
    driver_cuda: tuple[int, int] | None = None
    problem: str = ""
    num_devices: int = 0


def torch_build(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether torch sees the GPUs that the driver sees."""
    import torch

    num_usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names, problem, number = driver_gpus(), "", None
    if names and torch.version.cuda and not num_usable:
        problem = _cuda_problem()
    if names:
        with open_gpus():
            number = ask("nvmlSystemGetCudaDriverVersion")
    cuda = None if number is None else (number // 1000, number % 1000 // 10)
    seen = (torch.__version__, torch.version.cuda, num_usable, names, cuda, problem)
    yield assess(TorchState(*seen, num_devices=num_nvidia_devices()))


def assess(state: TorchState) -> Finding:
    """Whether torch can use the GPUs that the driver sees, and what to install if not."""
    built = f"{state.version}, built for {f'CUDA {state.cuda}' if state.cuda else 'the CPU'}"
    num_gpus, driver = len(state.driver_gpus), state.driver_cuda
    figures = {"version": state.version, "cuda": state.cuda, "usable_gpus": state.num_usable, "driver_gpus": num_gpus}
    if state.num_usable:
        return ok("torch", f"{built}, uses {state.num_usable} of {num_gpus} GPUs", **figures)
    if not num_gpus:
        return _assess_without_driver(state, built, figures)
    build = BUILDS.get(min(driver[0], max(BUILDS))) if driver else BUILDS[max(BUILDS)]
    install = CUDA_INSTALL.format(build) if build else NEWER_DRIVER
    if not state.cuda:
        figure = f"{built}, but the driver sees {num_gpus} GPUs ({state.driver_gpus[0]})"
        return failure("torch", figure, install, **figures)
    if driver and driver[0] < int(state.cuda.split(".")[0]):
        figure = f"{built}, too new for the driver, which is for CUDA up to {driver[0]}.{driver[1]}"
        fix = f"{NEWER_DRIVER}  # or: {install}" if build else NEWER_DRIVER
        return failure("torch", f"{figure}: no GPU of {num_gpus} can be used", fix, **figures)
    figure = f"{built}, cannot use the {num_gpus} GPUs that the driver sees: {state.problem}"
    fix = START_FABRIC_MANAGER if NOT_INITIALIZED in state.problem else INSPECT_GPUS
    return failure("torch", figure, fix, **figures)


def _assess_without_driver(state: TorchState, built: str, figures: dict) -> Finding:
    """A build for GPUs without a driver; where a GPU is on the bus, the check of the GPUs reports that as a failure."""
    if state.cuda and not state.num_devices:
        figure = f"{built}, but there is no NVIDIA driver: training runs on the CPU"
        return warning("torch", figure, f"{NO_DRIVER}; nothing to do without a GPU", **figures)
    return ok("torch", f"{built}; no driver of a GPU answers" if state.cuda else built, **figures)


def _cuda_problem() -> str:
    import torch

    try:
        torch.cuda.init()
    except RuntimeError as error:
        return " ".join(str(error).split())[:200]
    return "hidden, perhaps by CUDA_VISIBLE_DEVICES"


def compilers(_: Sequence[Path]) -> Iterator[Finding]:
    """What only --compile_layers needs: no op of DeepSpeed is compiled in a run."""
    found = {name: _compiler_version(name) for name in COMPILERS if shutil.which(name)}
    shown = ", ".join(f"{name} {version}".strip() for name, version in found.items()) or "none"
    problem = compiler_problem(on_gpu=True) if driver_gpus() else None
    figure = shown if problem is None else f"{shown}; --compile_layers is rejected: {problem}"
    yield warning_if(problem is not None, "compilers", figure, INSTALL_COMPILERS, compilers=found)


def _compiler_version(name: str) -> str:
    done = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
    found = re.search(r"release (\d+\.\d+)|(\d+\.\d+(?:\.\d+)?)", done.stdout)
    return next((version for version in found.groups() if version), "") if found else ""
