"""The GPUs of this machine and the peak of each model of them, without importing torch."""

import os
from dataclasses import dataclass

import pynvml

# Dense bf16 tensor-core peak in FLOP/s, from NVIDIA's data sheets (without sparsity). The first name found in the GPU's
# own name counts, so longer names stand before shorter ones. A GPU that is not listed has no MFU.
PEAK_BF16_FLOPS_PER_SECOND = {
    "B200": 2250e12,
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "H800": 989.4e12,
    "A100": 311.9e12,
    "A800": 311.9e12,
    "A40": 149.7e12,
    "A10G": 70e12,
    "L40S": 362.05e12,
    "L40": 181.05e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML names it."""

    name: str
    memory_bytes: int


def visible_gpus() -> list[Gpu]:
    """The GPUs this process may use: those of NVML that CUDA_VISIBLE_DEVICES does not hide; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        gpus = [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    words = [word.strip() for word in visible.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        return gpus[: len(words)]  # UUIDs: as many as are named, taken to be alike
    return [gpus[int(word)] for word in words if int(word) < len(gpus)]


def peak_flops_per_second(gpu_name: str) -> float | None:
    """Dense bf16 peak of a GPU by its name, None when it is not listed.

    >>> peak_flops_per_second("NVIDIA H200")
    989400000000000.0
    >>> peak_flops_per_second("Quadro P400") is None
    True
    """
    return next((peak for name, peak in PEAK_BF16_FLOPS_PER_SECOND.items() if name in gpu_name), None)


def _gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(handle)
    return Gpu(name if isinstance(name, str) else name.decode(), int(pynvml.nvmlDeviceGetMemoryInfo(handle).total))
