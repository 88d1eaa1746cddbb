"""Memory, utilization, power and energy of all processes, with one small all-gather per reading."""

import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import distributed

from pretraining.system.gpu_monitor import GpuMonitor, open_gpu_monitor

PAGES_OF_THIS_PROCESS = Path("/proc/self/statm")
STATUS_OF_THIS_PROCESS = Path("/proc/self/status")


# How the values of the processes are combined into one; each has one GPU.
COMBINED: dict[str, Callable[[Sequence[float]], float]] = {
    "peak_memory_bytes": max,
    "gpu_memory_bytes": max,
    "gpu_utilization": statistics.fmean,
    "gpu_power_watts": sum,
    "energy_joules": sum,
    "host_memory_bytes": sum,
    "peak_host_memory_bytes": sum,  # each process's own peak, so not quite at the same time
}


class HardwareMetrics:
    """Reads the values of this process and combines them with those of the others."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._monitor: GpuMonitor | None = None
        if device.type == "cuda":
            self._monitor = open_gpu_monitor(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        if self._monitor is not None:
            self._monitor.start()

    def take(self) -> dict[str, float]:
        """The values since the last call, over all processes; called on every process.

        The peaks, of the allocator and of host memory, and the energy are those of this whole start.
        """
        values = self._read()
        row = torch.tensor([values.get(name, math.nan) for name in COMBINED], dtype=torch.float64, device=self._device)
        rows = [torch.empty_like(row) for _ in range(distributed.get_world_size())]
        distributed.all_gather(rows, row)
        return combine_ranks(torch.stack(rows).tolist())

    def _read(self) -> dict[str, float]:
        values: dict[str, float] = {} if self._monitor is None else self._monitor.take()
        if self._device.type == "cuda":
            values["peak_memory_bytes"] = torch.cuda.max_memory_allocated(self._device)
        return {**values, "host_memory_bytes": resident_bytes(), "peak_host_memory_bytes": peak_resident_bytes()}


def combine_ranks(rows: Sequence[Sequence[float]]) -> dict[str, float]:
    """One value from those of all processes, in the order of `COMBINED`; none where a process has NaN."""
    metrics = {}
    for (name, combine), values in zip(COMBINED.items(), zip(*rows, strict=True), strict=True):
        if not any(map(math.isnan, values)):
            metrics[name] = int(combine(values)) if name.endswith("_bytes") else combine(values)
    return metrics


def resident_bytes() -> int:
    """Host memory of this process, including the pages that it shares with others."""
    return int(PAGES_OF_THIS_PROCESS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """Peak host memory of this process. Not from getrusage, which starts with the peak of the parent process."""
    (line,) = (line for line in STATUS_OF_THIS_PROCESS.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
