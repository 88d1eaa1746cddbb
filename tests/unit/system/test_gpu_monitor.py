"""The monitor against a stand-in of NVML, whose units and errors are those of the real one."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from pretraining.system.gpu_monitor import GpuMonitor, open_gpu_monitor


class StandIn:
    """One GPU: each reading gives the next of its values, or the error."""

    NVMLError = pynvml.NVMLError

    def __init__(self, **values: Any) -> None:
        self.values = values

    def nvmlInit(self) -> None:  # noqa: N802
        if "init" in self.values:
            raise self.values["init"]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def _next(self, name: str, handle: str) -> Any:
        assert handle == "handle"
        value = self.values[name]
        if isinstance(value, Exception):
            raise value
        return value.pop(0)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self._next("percent", handle), memory=1)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> Any:  # noqa: N802
        return self._next("milliwatts", handle)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(used=self._next("used", handle), total=10**12)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> Any:  # noqa: N802
        return self._next("millijoules", handle)


NOT_SUPPORTED = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_readings_are_the_mean_the_largest_and_what_was_used_since_the_start() -> None:
    nvml = StandIn(
        percent=[90, 100, 40],
        milliwatts=[600_000, 700_000, 100_000],
        used=[70, 50, 60],
        millijoules=[5_000_000, 9_000_000, 9_500_000],
    )
    monitor = open_gpu_monitor("GPU-1", nvml)
    assert monitor is not None
    monitor.sample()
    monitor.sample()
    first = monitor.take()
    assert first == {
        "gpu_utilization": pytest.approx(0.95),
        "gpu_power_watts": 650,
        "gpu_memory_bytes": 70,
        "energy_joules": 4000,
    }
    second = monitor.take()  # nothing was sampled since, so it looks itself
    assert second == {
        "gpu_utilization": pytest.approx(0.4),
        "gpu_power_watts": 100,
        "gpu_memory_bytes": 60,
        "energy_joules": 4500,
    }


def test_what_a_gpu_does_not_tell_is_left_out() -> None:
    nvml = StandIn(percent=[90], milliwatts=NOT_SUPPORTED, used=[70], millijoules=NOT_SUPPORTED)
    assert GpuMonitor("handle", nvml).take() == {"gpu_utilization": pytest.approx(0.9), "gpu_memory_bytes": 70}


def test_a_gpu_that_is_lost_leaves_the_run_going() -> None:
    lost = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
    nvml = StandIn(percent=[90], milliwatts=[1000], used=[70], millijoules=[0, 1000])
    monitor = GpuMonitor("handle", nvml)
    nvml.values = dict.fromkeys(nvml.values, lost)
    monitor.sample()
    assert monitor.take() == {}


@pytest.mark.parametrize(
    ("uuid", "values"),
    [("GPU-2", {}), ("GPU-1", {"init": pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)})],
)
def test_without_a_driver_or_a_gpu_there_is_no_monitor(uuid: str, values: dict[str, Any]) -> None:
    assert open_gpu_monitor(uuid, StandIn(**values)) is None


def test_the_stand_in_has_the_calls_of_the_real_one() -> None:
    for name in vars(StandIn):
        assert name.startswith("_") or hasattr(pynvml, name), name
