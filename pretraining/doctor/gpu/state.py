"""Each GPU as the driver tells of it: memory, faults, brakes, and who else is on it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pynvml

from pretraining.doctor.finding import Finding, failure, gigabytes, ok, warning
from pretraining.doctor.gpu.nvml import open_gpus, told
from pretraining.doctor.host.stale import described
from pretraining.system.gpus import peak_flops_per_second

PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"  # vendor, and how the class of a GPU begins
NO_DRIVER = "sudo ubuntu-drivers install  # in a container: docker run --gpus all IMAGE"
BUSY_BYTES = 2e9  # a driver keeps less for itself
# Why a clock is held down; at rest a GPU is idle, and under load near its power limit, which is as it should be.
BRAKES = {
    pynvml.nvmlClocksEventReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "too hot",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "too hot (hardware)",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "power brake of the power supply",
}


def gpus(_: Sequence[Path]) -> Iterator[Finding]:
    """The driver, and for each GPU what it is and what is wrong with it."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield judge_no_driver(str(error), num_devices=num_nvidia_devices())
        return
    cuda = pynvml.nvmlSystemGetCudaDriverVersion()
    version = pynvml.nvmlSystemGetDriverVersion()
    yield ok("driver", f"{version}, for CUDA up to {cuda // 1000}.{cuda % 1000 // 10}", version=version, cuda=cuda)
    with open_gpus() as handles:
        for number, handle in enumerate(handles):
            yield _what_it_is(f"GPU {number}", handle)
            yield from _what_is_wrong(f"GPU {number}", number, handle)


def num_nvidia_devices() -> int:
    """NVIDIA GPUs on the PCI bus, driver or not."""
    devices = [path for path in PCI_DEVICES.glob("*") if (path / "vendor").read_text().strip() == NVIDIA]
    return sum((path / "class").read_text().startswith(DISPLAY) for path in devices)


def judge_no_driver(problem: str, *, num_devices: int) -> Finding:
    """Whether it is a machine without GPUs, or one whose GPUs cannot be used."""
    if num_devices:
        figure = f"{num_devices} of NVIDIA on the PCI bus, but the driver does not answer: {problem}"
        return failure("GPUs", figure, NO_DRIVER, devices=num_devices)
    return ok("GPUs", "none; training runs on the CPU")


def _what_it_is(name: str, handle: Any) -> Finding:
    model, memory = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
    peak = peak_flops_per_second(model)
    known = f"peak {peak / 1e12:,.0f} TFLOP/s" if peak else "peak not known, so no MFU"
    figure = f"{model}, {gigabytes(memory.free)} of {gigabytes(memory.total)} free, {known}"
    figures = {"gpu": model, "memory_bytes": memory.total, "free_bytes": memory.free, "peak_flops_per_second": peak}
    if memory.used > BUSY_BYTES:
        return warning(name, f"{figure}: {gigabytes(memory.used)} are in use", "nvidia-smi", **figures)
    return ok(name, figure, **figures)


def _what_is_wrong(name: str, number: int, handle: Any) -> Iterator[Finding]:
    errors = told(
        pynvml.nvmlDeviceGetTotalEccErrors, handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
    )
    rows = told(pynvml.nvmlDeviceGetRemappedRows, handle)
    reset = f"sudo nvidia-smi --gpu-reset -i {number}"
    if rows and rows[3]:
        yield failure(name, "memory: a broken row could not be replaced; the GPU is to be exchanged", "nvidia-smi -q")
    elif errors or (rows and rows[2]):
        figure = f"memory: {errors or 0} uncorrected errors since the driver started"
        yield failure(name, figure + (", a row waits to be replaced" if rows and rows[2] else ""), reset, errors=errors)
    reasons = told(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle) or 0
    brakes = [words for bit, words in BRAKES.items() if reasons & bit]
    if brakes:
        fix = f"nvidia-smi -q -i {number} -d PERFORMANCE,TEMPERATURE,POWER"
        yield warning(name, f"held down: {', '.join(brakes)}", fix, brakes=brakes)
    if told(pynvml.nvmlDeviceGetPersistenceMode, handle) == 0:
        yield warning(name, "persistence mode is off: each start waits for the driver", "sudo nvidia-smi -pm 1")
    if told(pynvml.nvmlDeviceGetComputeMode, handle) == pynvml.NVML_COMPUTEMODE_PROHIBITED:
        yield failure(name, "compute mode is Prohibited", f"sudo nvidia-smi -i {number} -c DEFAULT")
    if (told(pynvml.nvmlDeviceGetMigMode, handle) or [0])[0]:
        figure = "is divided (MIG): its parts cannot exchange by NCCL"
        yield warning(name, figure, f"sudo nvidia-smi -i {number} -mig 0")


def processes(_: Sequence[Path]) -> Iterator[Finding]:
    """Who else computes on the GPUs: memory that a run will miss, and time."""
    try:
        with open_gpus() as handles:
            found = [told(pynvml.nvmlDeviceGetComputeRunningProcesses, handle) or [] for handle in handles]
    except pynvml.NVMLError:
        return
    for number, others in enumerate(found):
        for other in others:
            if other.pid != os.getpid():
                used = gigabytes(other.usedGpuMemory) if other.usedGpuMemory else "an unknown part"
                figure = f"{described(other.pid)} uses {used} of its memory"
                yield warning(
                    f"GPU {number}", figure, f"ps -fp {other.pid}  # not wanted? kill {other.pid}", pid=other.pid
                )
    if not any(found):
        yield ok("GPU processes", "none")
