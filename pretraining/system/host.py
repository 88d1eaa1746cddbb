"""The hardware of this machine: what its processor computes, and how much host memory it can give."""

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pretraining.system.cores import group_folders
from pretraining.system.gpus import open_gpus

CPU_INFO = Path("/proc/cpuinfo")
ROOT = Path("/")
# Of a control group: its limit, what it has taken, and the entries of memory.stat that count cached files.
VERSION_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))

# What computes bf16 products; elsewhere oneDNN emulates them, at half the speed of fp32 and less.
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")


def available_host_bytes(root: Path | None = None) -> int:
    """Memory that new work can take without swapping (MemAvailable), and within the limits of container or job.

    `root` is where /proc and /sys are.
    """
    root = root or ROOT
    information = root / "proc/meminfo"
    for line in information.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return min([int(line.split()[1]) * 1024, *_bytes_within_limits(root)])
    raise RuntimeError(f"{information} has no MemAvailable line")


def _bytes_within_limits(root: Path) -> Iterator[int]:
    """What each control group of this process may still take, without those that have no limit."""
    for group in group_folders("memory", root):
        for limit_name, used_name, cached_names in (VERSION_2, VERSION_1):
            with suppress(OSError, ValueError, KeyError):  # of the other version, or "max"
                limit, used = (int((group / name).read_text(encoding="ascii")) for name in (limit_name, used_name))
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                # Cached files are dropped first, those that were read twice as well: blocks, and checkpoints.
                yield max(0, limit - used + sum(int(stat[name]) for name in cached_names))


def machine_inventory() -> dict[str, Any]:
    """Processor, memory, system, driver and GPUs, as JSON; a run may use fewer GPUs."""
    return {
        "cpu": processor_name(),
        "num_cpu_cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        **_driver_and_gpus(),
    }


def processor_name() -> str:
    """The processor as /proc/cpuinfo calls it, otherwise its architecture."""
    return _cpu_field("model name") or platform.machine() or "unknown"


def instructions() -> frozenset[str]:
    """The instruction sets that the processor names: `flags` on x86, `Features` on Arm; none where it is not known."""
    return frozenset(_cpu_field("flags", "Features").split())


def _cpu_field(*names: str) -> str:
    """The first field of /proc/cpuinfo that begins with one of `names`; empty where it has none."""
    with suppress(OSError):
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(names):
                return line.partition(":")[2].strip()
    return ""


def bf16_instruction() -> str | None:
    """The instruction set by which this processor computes bf16, None where that would be emulated."""
    return next((name for name in BF16_INSTRUCTIONS if name in instructions()), None)


def _driver_and_gpus() -> dict[str, Any]:
    """The driver and its GPUs; as far as they were read if the driver fails, none without its package."""
    found: dict[str, Any] = {"driver": None, "gpus": []}
    try:
        import pynvml  # here: tools.doctor names the processor even if nothing is installed
    except ImportError:
        return found
    with suppress(pynvml.NVMLError), open_gpus() as handles:
        found["driver"] = pynvml.nvmlSystemGetDriverVersion()
        for handle in handles:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            found["gpus"].append({"name": pynvml.nvmlDeviceGetName(handle), "memory_bytes": memory.total})
    return found
