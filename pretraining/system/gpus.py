"""What is known about GPUs: memory, peak, power and links of each kind, and what the driver sees without torch."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pretraining.errors import UserError, nearest


@dataclass(frozen=True)
class GpuType:
    """A kind of GPU by NVIDIA's data sheet."""

    driver_name: str  # exact: near names differ (an RTX A4000 is no A40, an H100 PCIe is no SXM)
    memory_gib: float  # "GB" of a data sheet are powers of two
    peak_flops_per_second: float  # bf16 on tensor cores with sums in fp32, dense
    board_watts: int
    pcie_generation: int  # of 16 lanes
    nvlink_gb_per_second: int = 0  # each way, to all GPUs of a machine; bridges, which join pairs, do not count
    has_bf16: bool = True  # otherwise the peak is that of fp16
    has_fp8: bool = True  # Ada, Hopper and newer

    @property
    def memory_bytes(self) -> int:
        """About what a GPU of this kind reports to torch.

        98 % at least: 139.8 GiB of 141 on an H200, 178.35 of 180 on a B200, 31.37 of 32 on an RTX 5090, 23.52 to 23.68
        of 24 on an RTX 4090.
        """
        return int(REPORTED_SHARE * self.memory_gib * 2**30)

    @property
    def pcie_bytes_per_second(self) -> float:
        """Bytes that PCI Express carries each way: 63 GB/s in generation 5, half of it in the one before."""
        return PCIE_5_BYTES_PER_SECOND / 2 ** (5 - self.pcie_generation)


REPORTED_SHARE = 0.98
ECC_SHARE = 15 / 16  # what ECC leaves of GDDR6; HBM has separate bits for it
PCIE_5_BYTES_PER_SECOND = 63e9
# By the name that --gpu_type takes. Data sheets of NVIDIA: "DGX B200", "HGX B300" (a GPU is an eighth of it), "H200",
# "H100", "A100", "V100", "L40S", "L40", "L4", "A40", "A10"; whitepapers "GA102", "Ada", "RTX Blackwell" for GeForce and
# RTX. Where only a figure with sparsity is printed, this is half of it. A800, H800 and H20 are the A100 and H100 with
# slower links, or fewer cores, by the sheets of their vendors.
GPU_TYPES = {
    "b300": GpuType("NVIDIA B300 SXM6 AC", 268, 2250e12, 1100, 6, 900),
    "b200": GpuType("NVIDIA B200", 180, 2250e12, 1000, 5, 900),
    "h200": GpuType("NVIDIA H200", 141, 989.4e12, 700, 5, 450),
    "h200_nvl": GpuType("NVIDIA H200 NVL", 141, 835.5e12, 600, 5),
    "h100": GpuType("NVIDIA H100 80GB HBM3", 80, 989.4e12, 700, 5, 450),
    "h100_nvl": GpuType("NVIDIA H100 NVL", 94, 835.5e12, 400, 5),
    "h100_pcie": GpuType("NVIDIA H100 PCIe", 80, 756e12, 350, 5),
    "h800": GpuType("NVIDIA H800", 80, 989.4e12, 700, 5, 200),
    "h20": GpuType("NVIDIA H20", 96, 148e12, 400, 5, 450),
    "a100_80gb": GpuType("NVIDIA A100-SXM4-80GB", 80, 311.9e12, 400, 4, 300, has_fp8=False),
    "a100_40gb": GpuType("NVIDIA A100-SXM4-40GB", 40, 311.9e12, 400, 4, 300, has_fp8=False),
    "a100_80gb_pcie": GpuType("NVIDIA A100 80GB PCIe", 80, 311.9e12, 300, 4, has_fp8=False),
    "a100_40gb_pcie": GpuType("NVIDIA A100-PCIE-40GB", 40, 311.9e12, 250, 4, has_fp8=False),
    "a800": GpuType("NVIDIA A800-SXM4-80GB", 80, 311.9e12, 400, 4, 200, has_fp8=False),
    "v100_32gb": GpuType("Tesla V100-SXM2-32GB", 32, 125e12, 300, 3, 150, has_bf16=False, has_fp8=False),
    "v100_16gb": GpuType("Tesla V100-SXM2-16GB", 16, 125e12, 300, 3, 150, has_bf16=False, has_fp8=False),
    "v100_32gb_pcie": GpuType("Tesla V100-PCIE-32GB", 32, 112e12, 250, 3, has_bf16=False, has_fp8=False),
    "v100_16gb_pcie": GpuType("Tesla V100-PCIE-16GB", 16, 112e12, 250, 3, has_bf16=False, has_fp8=False),
    "l40s": GpuType("NVIDIA L40S", 48 * ECC_SHARE, 362.05e12, 350, 4),
    "l40": GpuType("NVIDIA L40", 48 * ECC_SHARE, 181.05e12, 300, 4),
    "l4": GpuType("NVIDIA L4", 24 * ECC_SHARE, 121e12, 72, 4),
    "a40": GpuType("NVIDIA A40", 48 * ECC_SHARE, 149.7e12, 300, 4, has_fp8=False),
    "a10g": GpuType("NVIDIA A10G", 24 * ECC_SHARE, 70e12, 300, 4, has_fp8=False),
    "rtx_6000_ada": GpuType("NVIDIA RTX 6000 Ada Generation", 48 * ECC_SHARE, 364.2e12, 300, 4),
    "rtx_5090": GpuType("NVIDIA GeForce RTX 5090", 32, 209.5e12, 575, 5),
    "rtx_4090": GpuType("NVIDIA GeForce RTX 4090", 24, 165.2e12, 450, 4),
    "rtx_3090": GpuType("NVIDIA GeForce RTX 3090", 24, 71e12, 350, 4, has_fp8=False),
}
# Names that leave out the memory, and the kind that is meant.
SHORT_NAMES = {"a100": "a100_80gb", "a100_pcie": "a100_80gb_pcie", "v100": "v100_32gb", "v100_pcie": "v100_32gb_pcie"}


def gpu_type_of(driver_name: str) -> GpuType | None:
    """The kind of a GPU by the exact name that the driver gives, None when it is not listed: nothing is guessed."""
    return next((kind for kind in GPU_TYPES.values() if kind.driver_name == driver_name), None)


def full_gpu_name(name: str) -> str:
    """The name of a kind of GPU in our spelling, with its memory if it comes with more than one.

    >>> full_gpu_name("A100")
    'a100_80gb'
    """
    name = name.lower().replace("-", "_")
    return SHORT_NAMES.get(name, name)


def find_gpu_type(name: str) -> GpuType:
    """The kind of GPU that --gpu_type names.

    Raises:
        UserError: when it is not listed, with the nearest that is.
    """
    kind = GPU_TYPES.get(full_gpu_name(name))
    if kind is None:
        raise UserError(
            f"--gpu_type {name}: is not known{nearest(name, GPU_TYPES)}; the known ones: {', '.join(GPU_TYPES)}"
        )
    return kind


def peak_flops_per_second(gpu_name: str) -> float | None:
    """Dense bf16 peak of a GPU by its name, None when it is not listed.

    >>> peak_flops_per_second("NVIDIA H200")
    989400000000000.0
    >>> peak_flops_per_second("NVIDIA RTX A4000") is None
    True
    """
    kind = gpu_type_of(gpu_name)
    return None if kind is None else kind.peak_flops_per_second


def driver_gpu_names() -> list[str]:
    """Names of the GPUs that NVIDIA's driver sees, whatever torch was built for; none without it or its package."""
    try:
        import pynvml  # here: every program imports this module, the doctor also where no package is installed
    except ImportError:
        return []
    with suppress(pynvml.NVMLError), open_gpus() as handles:
        return [pynvml.nvmlDeviceGetName(handle) for handle in handles]
    return []


@contextmanager
def open_gpus() -> Iterator[Iterator[Any]]:
    """Handles of all GPUs.

    Raises:
        pynvml.NVMLError: when the driver is missing or does not answer.
    """
    import pynvml

    pynvml.nvmlInit()
    try:
        yield map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()
