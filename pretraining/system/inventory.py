"""What a machine is made of, for the record of a run: processor, memory, GPUs and their driver."""

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

CPU_INFO = Path("/proc/cpuinfo")


def machine_inventory() -> dict[str, Any]:
    """All of it, as JSON; the GPUs are those of the machine, of which a run may use a part."""
    return {
        "cpu": processor_name(),
        "num_cpu_cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        **_driver_and_gpus(),
    }


def processor_name() -> str:
    """The processor as /proc/cpuinfo calls it, otherwise its architecture."""
    names: list[str] = []
    with suppress(OSError), CPU_INFO.open(encoding="utf-8", errors="replace") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine() or "unknown"


def _driver_and_gpus() -> dict[str, Any]:
    """Nothing where there is no driver; with a driver that fails meanwhile, what it said before."""
    import pynvml  # here, as the doctor names the processor where nothing is installed

    found: dict[str, Any] = {"driver": None, "gpus": []}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return found
    try:
        found["driver"] = pynvml.nvmlSystemGetDriverVersion()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            found["gpus"].append({"name": pynvml.nvmlDeviceGetName(handle), "memory_bytes": memory.total})
    except pynvml.NVMLError:
        pass
    finally:
        pynvml.nvmlShutdown()
    return found
