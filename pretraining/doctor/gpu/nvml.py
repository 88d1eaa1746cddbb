"""NVIDIA's driver as NVML shows it, which it does without torch.

pynvml is imported where it is used: checks of the host ask for GPUs as well, and have their own to say where it is
missing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Value = TypeVar("Value")


def driver_gpus() -> list[str]:
    """Names of the GPUs that the driver sees; none without a driver, or without nvidia-ml-py."""
    try:
        from pretraining.system.gpus import driver_gpu_names
    except ImportError:
        return []
    return driver_gpu_names()


@contextmanager
def open_gpus() -> Iterator[list[Any]]:
    """Handles of all GPUs.

    Raises:
        pynvml.NVMLError: when there is no driver, or it does not answer.
    """
    import pynvml

    pynvml.nvmlInit()
    try:
        yield [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def told(query: Callable[..., Value], *words: Any) -> Value | None:
    """The answer to a query, None where this GPU or driver has none, as most have for some."""
    import pynvml

    try:
        return query(*words)
    except pynvml.NVMLError:
        return None
