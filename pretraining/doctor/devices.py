"""GPUs as NVIDIA's driver reports them through NVML: memory, errors, throttling, links, and who else uses them."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pretraining.doctor.finding import Finding, failure, ok, warning, warning_if
from pretraining.doctor.leftovers import describe_process
from pretraining.system.formatting import format_bytes
from pretraining.system.gpus import driver_gpu_names, open_gpus, peak_flops_per_second

PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"  # vendor, and the first digits of the class of a GPU
NO_DRIVER = "sudo ubuntu-drivers install  # in a container: docker run --gpus all IMAGE"
BUSY_BYTES = 2e9  # a driver keeps less for itself
MIN_BF16_CAPABILITY, MIN_FP8_CAPABILITY = (8, 0), (8, 9)  # Ampere, Ada
# Bits of nvmlClocksEventReasons*. An idle clock, or one at the power limit under load, is as it should be.
THROTTLE_REASONS = {
    0x8: "hardware slowdown",
    0x20: "too hot",
    0x40: "too hot (hardware)",
    0x80: "power brake of the power supply",
}
READ = 0  # of peer access; pynvml's own NVML_P2P_CAPS_INDEX_READ is a tuple by mistake


def ask(query: str, *arguments: Any) -> Any:
    """What NVML answers to a query, None where this GPU or driver does not support it."""
    import pynvml

    try:
        return getattr(pynvml, query)(*arguments)
    except pynvml.NVMLError:
        return None


def gpus(_: Sequence[Path]) -> Iterator[Finding]:
    """The driver, and for each GPU its model, memory and faults."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield assess_no_driver(str(error), num_devices=num_nvidia_devices())
        return
    with open_gpus() as handles:
        cuda, version = pynvml.nvmlSystemGetCudaDriverVersion(), pynvml.nvmlSystemGetDriverVersion()
        figure = f"{version}, for CUDA up to {cuda // 1000}.{cuda % 1000 // 10}"
        yield ok("driver", figure, version=version, cuda=cuda)
        for number, handle in enumerate(handles):
            yield _model_and_memory(f"GPU {number}", handle)
            yield from _faults(f"GPU {number}", number, handle)


def num_nvidia_devices() -> int:
    """NVIDIA GPUs on the PCI bus, with or without a driver."""
    devices = [path for path in PCI_DEVICES.glob("*") if (path / "vendor").read_text().strip() == NVIDIA]
    return sum((path / "class").read_text().startswith(DISPLAY) for path in devices)


def assess_no_driver(problem: str, *, num_devices: int) -> Finding:
    """Whether it is a machine without GPUs, or one whose GPUs cannot be used."""
    if num_devices:
        figure = f"{num_devices} of NVIDIA on the PCI bus, but the driver does not answer: {problem}"
        return failure("GPUs", figure, NO_DRIVER, devices=num_devices)
    return ok("GPUs", "none; training runs on the CPU")


def _model_and_memory(name: str, handle: Any) -> Finding:
    import pynvml

    model, memory = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
    peak = peak_flops_per_second(model)
    known = f"peak {peak / 1e12:,.0f} TFLOP/s" if peak else "peak not known, so no MFU"
    figure = f"{model}, {format_bytes(memory.free)} of {format_bytes(memory.total)} free, {known}"
    capability = ask("nvmlDeviceGetCudaComputeCapability", handle)
    if capability and tuple(capability) < MIN_FP8_CAPABILITY:
        figure += f"; compute capability {capability[0]}.{capability[1]} has no fp8: train without --fp8"
        figure += ", and no bf16: train in fp32 or with --fp16" if tuple(capability) < MIN_BF16_CAPABILITY else ""
    figures = {"gpu": model, "memory_bytes": memory.total, "free_bytes": memory.free, "peak_flops_per_second": peak}
    if memory.used > BUSY_BYTES:
        return warning(name, f"{figure}: {format_bytes(memory.used)} are in use", "nvidia-smi", **figures)
    return ok(name, figure, **figures)


def _faults(name: str, number: int, handle: Any) -> Iterator[Finding]:
    import pynvml

    kinds = (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
    errors = ask("nvmlDeviceGetTotalEccErrors", handle, *kinds) or 0
    _, _, is_pending, has_failed = ask("nvmlDeviceGetRemappedRows", handle) or (0, 0, 0, 0)
    if has_failed:
        yield failure(name, "memory: a broken row could not be remapped; replace the GPU", "nvidia-smi -q")
    elif errors or is_pending:
        figure = f"memory: {errors} uncorrected errors since the driver started"
        figure += ", a row waits to be remapped" if is_pending else ""
        yield failure(name, figure, f"sudo nvidia-smi --gpu-reset -i {number}", errors=errors)
    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons", handle) or 0
    throttled = [reason for bit, reason in THROTTLE_REASONS.items() if reasons & bit]
    if throttled:
        fix = f"nvidia-smi -q -i {number} -d PERFORMANCE,TEMPERATURE,POWER"
        yield warning(name, f"throttled: {', '.join(throttled)}", fix, throttled=throttled)
    if ask("nvmlDeviceGetPersistenceMode", handle) == 0:
        yield warning(name, "persistence mode is off: each start waits for the driver", "sudo nvidia-smi -pm 1")
    if ask("nvmlDeviceGetComputeMode", handle) == pynvml.NVML_COMPUTEMODE_PROHIBITED:
        yield failure(name, "compute mode is Prohibited", f"sudo nvidia-smi -i {number} -c DEFAULT")
    if (ask("nvmlDeviceGetMigMode", handle) or [0])[0]:
        fix = f"sudo nvidia-smi -i {number} -mig 0"
        yield warning(name, "is divided (MIG): NCCL cannot connect its instances", fix)


def processes(_: Sequence[Path]) -> Iterator[Finding]:
    """Other processes on the GPUs, with the memory that a run will lack."""
    if not driver_gpu_names():
        return
    with open_gpus() as handles:
        found = [ask("nvmlDeviceGetComputeRunningProcesses", handle) or [] for handle in handles]
    for number, others in enumerate(found):
        for other in others:
            if other.pid != os.getpid():
                used = format_bytes(other.usedGpuMemory) if other.usedGpuMemory else "an unknown part"
                figure = f"{describe_process(other.pid)} uses {used} of its memory"
                fix = f"ps -fp {other.pid}  # not wanted? kill {other.pid}"
                yield warning(f"GPU {number}", figure, fix, pid=other.pid)
    if not any(found):
        yield ok("GPU processes", "none")


def links(_: Sequence[Path]) -> Iterator[Finding]:
    """Each GPU's links, and whether GPUs reach each other's memory; consumer cards exchange through the host."""
    if not driver_gpu_names():
        return
    with open_gpus() as opened:
        handles = list(opened)
        found = [_link(handle) for handle in handles]
        reaches = [ask("nvmlDeviceGetP2PStatus", *pair, READ) == 0 for pair in itertools.combinations(handles, 2)]
    for number, link in enumerate(found):
        yield _assess_link(number, link, max_nvlinks=max(one["num_nvlinks"] for one in found))
    figure = f"missing between {reaches.count(False)} of {len(reaches)} pairs, which exchange through host memory"
    if reaches and not all(reaches):
        yield warning("peer access", figure, "nvidia-smi topo -p2p r; sudo dmesg | grep -i -e iommu -e acs")
    elif reaches:
        yield ok("peer access", f"between all {len(reaches)} pairs")


def has_nvlink_everywhere() -> bool:
    """Whether every GPU has an NVLink."""
    if not driver_gpu_names():
        return False
    with open_gpus() as handles:
        return all(_link(handle)["num_nvlinks"] for handle in handles)


def _link(handle: Any) -> dict[str, Any]:
    """NVLinks that are up, and PCI Express now and at best; an idle GPU lowers the generation, not the width."""
    import pynvml

    states = [ask("nvmlDeviceGetNvLinkState", handle, number) for number in range(pynvml.NVML_NVLINK_MAX_LINKS)]
    return {
        "num_nvlinks": states.count(pynvml.NVML_FEATURE_ENABLED),
        "generation": ask("nvmlDeviceGetCurrPcieLinkGeneration", handle),
        "best_generation": ask("nvmlDeviceGetMaxPcieLinkGeneration", handle),
        "width": ask("nvmlDeviceGetCurrPcieLinkWidth", handle),
        "best_width": ask("nvmlDeviceGetMaxPcieLinkWidth", handle),
    }


def _assess_link(number: int, link: dict[str, Any], *, max_nvlinks: int) -> Finding:
    """Whether a GPU has all its PCI Express lanes, and as many NVLinks as the others."""
    num_nvlinks, width, best_width = link["num_nvlinks"], link["width"], link["best_width"]
    figure, fix = f"{num_nvlinks or 'no'} NVLinks, PCIe {link['best_generation']} x{width}", ""
    if num_nvlinks < max_nvlinks:
        figure += f"; another GPU has {max_nvlinks} NVLinks"
        fix = f"nvidia-smi nvlink -s -i {number}; nvidia-smi topo -m"
    elif width is not None and best_width is not None and width < best_width:
        figure += f", of x{best_width}: is it seated in a full slot?"
        fix = f"nvidia-smi -q -i {number} | grep -A12 'GPU Link Info'"
    return warning_if(bool(fix), f"GPU {number} link", figure, fix, **link)
