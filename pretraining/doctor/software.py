"""Python, the installed packages, torch and the compilers: their versions, and whether torch can use the GPUs here."""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining import PROJECT_DIR
from pretraining.doctor.devices import NO_DRIVER, ask, num_nvidia_devices
from pretraining.doctor.finding import Finding, failure, ok, warning, warning_if
from pretraining.system.gpus import driver_gpu_names, open_gpus
from pretraining.system.machines.software import installed_version
from pretraining.system.torch_environment import INSTALL_COMPILERS, compiler_problem

MIN_PYTHON = (3, 11)
INSTALL = "python3 -m pip install -c requirements.lock --no-build-isolation -r requirements.txt"
INSTALL_TORCH = (
    "python3 -m pip install -c requirements.lock setuptools wheel torch && "  # DeepSpeed's build looks for it
)
# Each installs its own module pynvml: as the same file as nvidia-ml-py, so that the last one installed wins and
# removing one breaks the other, or as a folder that hides it. From version 12 on `pynvml` only depends on nvidia-ml-py.
NVML_RIVALS = {"nvidia-ml-py3": 10**6, "pynvml": 12}
CUDA_INSTALL = "python3 -m pip install --force-reinstall --index-url https://download.pytorch.org/whl/{} torch"
BUILDS = {12: "cu128", 13: "cu130"}  # by the CUDA version of the driver; minor versions are compatible
NEWER_DRIVER = "sudo ubuntu-drivers install"
NOT_INITIALIZED = "802"  # cudaErrorSystemNotReady, of machines with NVSwitch
START_FABRIC_MANAGER = "sudo systemctl start nvidia-fabricmanager"
INSPECT_GPUS = "env | grep -E 'CUDA|NVIDIA'; nvidia-smi; ls -l /dev/nvidia*"
# Of Open MPI: both together allow root without the flag.
ROOT_VARIABLES = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
COMPILERS = ("g++", "gcc", "clang", "nvcc", "ninja")
VERSION_SECONDS = 2.0


def python_version(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether this Python is new enough for the suite."""
    version, needed = platform.python_version(), ".".join(map(str, MIN_PYTHON))
    figure = f"{version}, {sys.executable}"
    fix = f"rm -rf .venv && python{needed} -m venv .venv"
    if sys.version_info >= MIN_PYTHON:
        yield ok("python", figure, version=version)
    else:
        yield failure("python", f"{figure}; needs {needed} or newer", fix, version=version)


def requirements(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether every direct dependency is installed, in a version that requirements.txt allows."""
    lines = (PROJECT_DIR / "requirements.txt").read_text(encoding="utf-8").splitlines()
    plain = [line.partition("#")[0].strip() for line in lines]
    wanted = {re.split(r"[<>=!~\[; ]", line)[0]: line for line in plain if line}
    missing = [name for name in wanted if installed_version(name) is None]
    if missing:
        figure = f"{len(missing)} of {len(wanted)} are missing: {', '.join(missing)}"
        fix = INSTALL_TORCH + INSTALL if "torch" in missing else INSTALL
        yield failure("requirements.txt", figure, fix, missing=missing)
    wrong = {name: found for name, line in wanted.items() if (found := _other_version(name, line))}
    if wrong:
        figure = ", ".join(f"{name} {found} (needs {wanted[name][len(name) :]})" for name, found in wrong.items())
        yield failure("requirements.txt", figure, INSTALL, other=wrong)
    if not missing and not wrong:
        yield ok("requirements.txt", f"all {len(wanted)} are installed")


def launcher(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether the command `deepspeed` is that of this environment, not of another one in PATH."""
    found, own = shutil.which("deepspeed"), Path(sys.executable).parent
    is_other = found is None or Path(found).parent.resolve() != own.resolve()
    figure = (found or "not found in PATH") + (f", but this Python is in {own}" if is_other else "")
    fix = f"export PATH={shlex.quote(str(own))}:$PATH" if (own / "deepspeed").exists() else INSTALL
    yield warning_if(is_other, "deepspeed", figure, fix, path=found)


def mpi_launcher(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether `mpirun` starts programs as it is: that of Open MPI rejects root, the user of most containers."""
    found = shutil.which("mpirun")
    if found is None:
        yield ok("mpirun", "not found in PATH; deepspeed, torchrun and python3 start every program as well")
        return
    is_open_mpi = (Path(found).parent / "ompi_info").exists()
    is_rejected = is_open_mpi and os.geteuid() == 0 and not all(os.environ.get(name) == "1" for name in ROOT_VARIABLES)
    figure = f"{found}, rejects root: use mpirun --allow-run-as-root -n N" if is_rejected else found
    yield ok("mpirun", figure, path=found, rejects_root=is_rejected)


def lock(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether the installed versions are those that the suite was tested with; others of the lock are not needed."""
    lines = (PROJECT_DIR / "requirements.lock").read_text(encoding="utf-8").splitlines()
    locked = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    installed = {name: found.partition("+")[0] for name in locked if (found := installed_version(name))}
    other = {name: found for name, found in installed.items() if found != locked[name]}
    named = ", ".join(f"{name} {found} (tested with {locked[name]})" for name, found in other.items())
    figure = named or f"{len(installed)} packages in the versions tested"
    yield warning_if(bool(other), "requirements.lock", figure, INSTALL, packages=len(installed), other=other)


def pynvml_owner(_: Sequence[Path]) -> Iterator[Finding]:
    """Whether NVIDIA's own package is the only one that installs the module `pynvml`."""
    found = {name: version for name in NVML_RIVALS if (version := installed_version(name))}
    fighting = {name: version for name, version in found.items() if int(version.split(".")[0]) < NVML_RIVALS[name]}
    remedy = f"python3 -m pip uninstall -y {' '.join(found)} && python3 -m pip install --force-reinstall nvidia-ml-py"
    named = ", ".join(f"{name} {version}" for name, version in found.items())
    if fighting:
        figure = f"{named} shares the module pynvml with nvidia-ml-py {installed_version('nvidia-ml-py')}"
        yield failure("pynvml", figure, remedy, found=found)
    elif found:
        yield warning("pynvml", f"{named} is installed, a deprecated name of nvidia-ml-py", remedy, found=found)
    elif installed_version("nvidia-ml-py") is None:
        yield warning("pynvml", "nvidia-ml-py is missing: GPUs cannot be queried", INSTALL)
    else:
        yield ok("pynvml", f"nvidia-ml-py {installed_version('nvidia-ml-py')} alone")


def _other_version(name: str, line: str) -> str | None:
    """The installed version, if `line` does not allow it."""
    found = installed_version(name)
    if found is None:
        return None
    from packaging.requirements import Requirement

    return None if Requirement(line).specifier.contains(found, prereleases=True) else found


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
    names, problem, number = driver_gpu_names(), "", None
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
    problem = compiler_problem(on_gpu=True) if driver_gpu_names() else None
    figure = shown if problem is None else f"{shown}; --compile_layers is rejected: {problem}"
    yield warning_if(problem is not None, "compilers", figure, INSTALL_COMPILERS, compilers=found)


def _compiler_version(name: str) -> str:
    done = subprocess.run([name, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
    found = re.search(r"release (\d+\.\d+)|(\d+\.\d+(?:\.\d+)?)", done.stdout)
    return next((version for version in found.groups() if version), "") if found else ""
