"""What is known about GPUs: the peak of each model, and what the driver sees where torch sees nothing."""

import pynvml

# Dense bf16 tensor-core peak in FLOP/s by the exact name that the driver gives, from NVIDIA's data sheets.
# A name that is not here has no MFU: near names differ (an RTX A4000 is no A40, an H100 PCIe is slower than an SXM).
PEAK_BF16_FLOPS_PER_SECOND = {
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 311.9e12,
    "NVIDIA A100-SXM4-80GB": 311.9e12,
    "NVIDIA A100-PCIE-40GB": 311.9e12,
    "NVIDIA A100 80GB PCIe": 311.9e12,
    "NVIDIA A40": 149.7e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA L40S": 362.05e12,
    "NVIDIA L40": 181.05e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}


def peak_flops_per_second(gpu_name: str) -> float | None:
    """Dense bf16 peak of a GPU by its name, None when it is not listed.

    >>> peak_flops_per_second("NVIDIA H200")
    989400000000000.0
    >>> peak_flops_per_second("NVIDIA RTX A4000") is None
    True
    """
    return PEAK_BF16_FLOPS_PER_SECOND.get(gpu_name)


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
