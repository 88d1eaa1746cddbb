"""The installed torch: for which hardware it was built, and whether it can use the GPUs that are here."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pynvml
import torch

from pretraining.doctor.finding import Finding, failure, ok
from pretraining.doctor.gpu.nvml import driver_gpus, open_gpus, told

CUDA_INSTALL = "python3 -m pip install --force-reinstall --index-url https://download.pytorch.org/whl/{} torch"
BUILDS = {12: "cu128", 13: "cu130"}  # by the CUDA that the driver is for; minor versions get along
NEWER_DRIVER = "sudo ubuntu-drivers install"
NOT_INITIALIZED = "802"  # cudaErrorSystemNotReady, of machines with NVSwitch
START_FABRIC_MANAGER = "sudo systemctl start nvidia-fabricmanager"


@dataclass(frozen=True)
class Seen:
    """What torch and the driver say of the GPUs; CUDA versions as (13, 0)."""

    version: str
    cuda: str | None
    num_usable: int
    driver_gpus: list[str]
    driver_cuda: tuple[int, int] | None = None
    problem: str = ""


def torch_build(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether torch sees what the driver sees."""
    num_usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names, problem = driver_gpus(), ""
    if names and torch.version.cuda and not num_usable:
        problem = _cuda_problem()
    yield judge(Seen(torch.__version__, torch.version.cuda, num_usable, names, _driver_cuda(), problem))


def judge(seen: Seen) -> Finding:
    """What it means that torch can use so many of the GPUs that the driver sees."""
    built = f"{seen.version}, built for {f'CUDA {seen.cuda}' if seen.cuda else 'the CPU'}"
    num_gpus, driver = len(seen.driver_gpus), seen.driver_cuda
    figures = {"version": seen.version, "cuda": seen.cuda, "usable_gpus": seen.num_usable, "driver_gpus": num_gpus}
    if seen.num_usable:
        return ok("torch", f"{built}, uses {seen.num_usable} of {num_gpus} GPUs", **figures)
    if not num_gpus:
        return ok("torch", f"{built}; there is no GPU here", **figures)
    build = BUILDS.get(min(driver[0], max(BUILDS))) if driver else BUILDS[max(BUILDS)]
    install = CUDA_INSTALL.format(build) if build else NEWER_DRIVER
    if not seen.cuda:
        figure = f"{built}, but the driver sees {num_gpus} GPUs ({seen.driver_gpus[0]})"
        return failure("torch", figure, install, **figures)
    figure = f"{built}, cannot use the {num_gpus} GPUs that the driver sees: {seen.problem}"
    if driver and driver[0] < int(seen.cuda.split(".")[0]):
        figure += f"; the driver is for CUDA up to {driver[0]}.{driver[1]}"
        return failure("torch", figure, install, **figures)
    is_waiting = NOT_INITIALIZED in seen.problem
    fix = START_FABRIC_MANAGER if is_waiting else "env | grep -E 'CUDA|NVIDIA'; nvidia-smi; ls -l /dev/nvidia*"
    return failure("torch", figure, fix, **figures)


def _cuda_problem() -> str:
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return " ".join(str(error).split())[:200]
    return "hidden, perhaps by CUDA_VISIBLE_DEVICES"


def _driver_cuda() -> tuple[int, int] | None:
    try:
        with open_gpus():
            version = told(pynvml.nvmlSystemGetCudaDriverVersion)
    except pynvml.NVMLError:
        return None
    return None if version is None else (version // 1000, version % 1000 // 10)
