"""What NVIDIA's driver sees of one GPU while it trains: how busy it is, its power, its energy, its memory in use."""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pynvml

SAMPLE_SECONDS = 1.0  # the driver's own utilisation is that of the last second at most

logger = logging.getLogger(__name__)


class GpuMonitor:
    """Samples a GPU in a separate thread. Values that the driver does not report are omitted.

    `handle` is that of the GPU in `nvml`, which is pynvml.
    """

    def __init__(self, handle: Any, nvml: Any = pynvml) -> None:
        self._handle = handle
        self._nvml = nvml
        self._lock = threading.Lock()
        self._summed: dict[str, tuple[float, int]] = {}  # however many: a run that logs nothing takes none away
        self._largest_bytes = 0.0
        self._first_joules = self._joules()

    def start(self) -> None:
        """Sample from now on, until the process ends."""
        threading.Thread(target=self._sample_on, name="gpu monitor", daemon=True).start()

    def sample(self) -> None:
        """Look once. It takes no time of the GPU, and Python's lock is free meanwhile."""
        readings = {
            "gpu_utilization": self._read(lambda: self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100),
            "gpu_power_watts": self._read(lambda: self._nvml.nvmlDeviceGetPowerUsage(self._handle) / 1000),
            "gpu_memory_bytes": self._read(lambda: self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used),
        }
        with self._lock:
            for name, value in readings.items():
                if value is not None:
                    total, count = self._summed.get(name, (0.0, 0))
                    self._summed[name] = total + value, count + 1
            self._largest_bytes = max(self._largest_bytes, readings["gpu_memory_bytes"] or 0)

    def take(self) -> dict[str, float]:
        """Mean utilisation and power and the largest memory since they were last taken; energy since the start."""
        if not self._summed:
            self.sample()
        with self._lock:
            summed, largest_bytes, self._summed, self._largest_bytes = self._summed, self._largest_bytes, {}, 0.0
        figures = {name: total / count for name, (total, count) in summed.items()}
        figures |= {"gpu_memory_bytes": largest_bytes} if "gpu_memory_bytes" in figures else {}
        joules = self._joules()
        if self._first_joules is not None and joules is not None:
            figures["energy_joules"] = joules - self._first_joules
        return figures

    def _joules(self) -> float | None:
        """A counter since the driver was loaded, which GPUs have since Volta."""
        return self._read(lambda: self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1000)

    def _read(self, reading: Callable[[], float]) -> float | None:
        with suppress(self._nvml.NVMLError):  # not supported, no permission, or the GPU is gone: that ends no run
            return reading()
        return None

    def _sample_on(self) -> None:
        waiting = threading.Event()
        while not waiting.wait(SAMPLE_SECONDS):
            self.sample()


def open_gpu_monitor(uuid: str, nvml: Any = pynvml) -> GpuMonitor | None:
    """The monitor of the GPU with this UUID, however CUDA_VISIBLE_DEVICES numbers it; None where NVML has none."""
    try:
        nvml.nvmlInit()
        return GpuMonitor(nvml.nvmlDeviceGetHandleByUUID(uuid), nvml)
    except nvml.NVMLError as error:
        logger.info("no utilisation, power and energy of GPU %s in the log (%s)", uuid, error)
        return None
