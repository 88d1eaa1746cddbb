"""What is known about GPUs: memory, peak and power of each kind, and what the driver sees where torch sees nothing."""

import os
from dataclasses import dataclass
from pathlib import Path

import pynvml

from pretraining.errors import UserError, nearest

GB = 10**9
DRIVER_DEVICE = Path("/dev/nvidiactl")  # there is one where NVIDIA's driver is
ALLOCATOR_VARIABLE = "PYTORCH_ALLOC_CONF"
OLD_ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")  # which torch still reads


@dataclass(frozen=True)
class GpuType:
    """A kind of GPU by NVIDIA's data sheet."""

    driver_name: str  # exact: near names differ (an RTX A4000 is no A40, an H100 PCIe is no SXM)
    memory_bytes: int  # in GB of 10**9, never more than the driver gives: 80 GB of HBM are 85e9 bytes there
    peak_flops_per_second: float  # bf16 on tensor cores, dense
    board_watts: int


# By the name that --gpu_type takes.
GPU_TYPES = {
    "b200": GpuType("NVIDIA B200", 180 * GB, 2250e12, 1000),
    "h200": GpuType("NVIDIA H200", 141 * GB, 989.4e12, 700),
    "h200_nvl": GpuType("NVIDIA H200 NVL", 141 * GB, 835.5e12, 600),
    "h100": GpuType("NVIDIA H100 80GB HBM3", 80 * GB, 989.4e12, 700),
    "h100_nvl": GpuType("NVIDIA H100 NVL", 94 * GB, 835.5e12, 400),
    "h100_pcie": GpuType("NVIDIA H100 PCIe", 80 * GB, 756e12, 350),
    "a100_80gb": GpuType("NVIDIA A100-SXM4-80GB", 80 * GB, 311.9e12, 400),
    "a100_40gb": GpuType("NVIDIA A100-SXM4-40GB", 40 * GB, 311.9e12, 400),
    "a100_80gb_pcie": GpuType("NVIDIA A100 80GB PCIe", 80 * GB, 311.9e12, 300),
    "a100_40gb_pcie": GpuType("NVIDIA A100-PCIE-40GB", 40 * GB, 311.9e12, 250),
    "a40": GpuType("NVIDIA A40", 48 * GB, 149.7e12, 300),
    "a10g": GpuType("NVIDIA A10G", 24 * GB, 70e12, 300),
    "l40s": GpuType("NVIDIA L40S", 48 * GB, 362.05e12, 350),
    "l40": GpuType("NVIDIA L40", 48 * GB, 181.05e12, 300),
    "rtx_4090": GpuType("NVIDIA GeForce RTX 4090", 24 * GB, 165.2e12, 450),
    "rtx_3090": GpuType("NVIDIA GeForce RTX 3090", 24 * GB, 71e12, 350),
}


def gpu_type_of(driver_name: str) -> GpuType | None:
    """The kind of a GPU by the exact name that the driver gives, None when it is not listed: nothing is guessed."""
    return next((kind for kind in GPU_TYPES.values() if kind.driver_name == driver_name), None)


def find_gpu_type(name: str) -> GpuType:
    """The kind of GPU that --gpu_type names.

    Raises:
        UserError: when it is not listed, with the nearest that is.
    """
    if name not in GPU_TYPES:
        raise UserError(
            f"--gpu_type {name}: is not known{nearest(name, GPU_TYPES)}; the known ones: {', '.join(GPU_TYPES)}"
        )
    return GPU_TYPES[name]


def peak_flops_per_second(gpu_name: str) -> float | None:
    """Dense bf16 peak of a GPU by its name, None when it is not listed.

    >>> peak_flops_per_second("NVIDIA H200")
    989400000000000.0
    >>> peak_flops_per_second("NVIDIA RTX A4000") is None
    True
    """
    kind = gpu_type_of(gpu_name)
    return None if kind is None else kind.peak_flops_per_second


def use_expandable_segments() -> None:
    """Let torch's allocator grow its segments, before it allocates on a GPU; a setting of the user's own stays.

    Segments of fixed size cannot be merged. So the copies of gradients in an optimizer step would not fit in the place
    of freed activations.
    """
    is_set = any(name in os.environ for name in (ALLOCATOR_VARIABLE, *OLD_ALLOCATOR_VARIABLES))
    if DRIVER_DEVICE.exists() and not is_set:
        os.environ[ALLOCATOR_VARIABLE] = "expandable_segments:True"


def driver_gpu_names() -> list[str]:
    """Names of the GPUs that NVIDIA's driver sees, whatever torch was built for; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetName(handle) for handle in handles]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()
