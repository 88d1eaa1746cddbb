"""The machine that a run is planned for: this one, or the one that flags describe."""

from dataclasses import dataclass

from pretraining.system.gpus import GpuType

MOST_GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class MachineSpec:
    """Processes, one for each GPU where there are any, and the memory that they find."""

    name: str
    num_processes: int
    num_local_processes: int  # of one machine, if it takes several
    gpu_bytes: int | None  # None without GPUs
    gpu_type: GpuType | None  # None without GPUs, and for a kind that is not listed
    host_bytes: int | None  # of one machine; None where it is not known, and so not checked

    @property
    def has_gpu(self) -> bool:
        """Whether the weights lie on GPUs."""
        return self.gpu_bytes is not None
