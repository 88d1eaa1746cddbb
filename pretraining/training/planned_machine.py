"""The machine that a run is planned for: this one, or the one that flags describe."""

from dataclasses import dataclass

import torch

from pretraining.cli.errors import UserError
from pretraining.cli.launchers import num_local_processes, num_processes
from pretraining.cli.plan_arguments import PlanArguments
from pretraining.machine.gpus import GpuType, find_gpu_type, gpu_type_of
from pretraining.machine.memory import available_host_bytes
from pretraining.training.processes import has_gpu, smallest_gpu_bytes

MOST_GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class Machine:
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


def this_machine() -> Machine:
    """The GPUs that the processes of this start have, and the memory that is available now."""
    gpu_bytes = smallest_gpu_bytes()
    driver_name = torch.cuda.get_device_name() if has_gpu() else None
    return Machine(
        name="this machine" if driver_name is None else f"{num_processes()} x {driver_name}",
        num_processes=num_processes(),
        num_local_processes=num_local_processes(),
        gpu_bytes=gpu_bytes,
        gpu_type=None if driver_name is None else gpu_type_of(driver_name),
        host_bytes=available_host_bytes(),
    )


def planned_machine(flags: PlanArguments) -> Machine:
    """What --num_gpus, --gpu_type and --host_memory describe; what they leave open is as in this machine.

    Raises:
        UserError: when they do not describe one.
    """
    here = this_machine()
    if flags.gpu_type is None and flags.num_gpus is not None and not here.has_gpu:
        raise UserError(f"--num_gpus {flags.num_gpus}: this machine has no GPU; say which with --gpu_type, as h200")
    if flags.gpu_type is None and flags.num_gpus is None:
        num_gpus = max(here.num_processes, torch.cuda.device_count() if here.has_gpu else 1)
    else:
        num_gpus = flags.num_gpus or here.num_processes
    kind = here.gpu_type if flags.gpu_type is None else find_gpu_type(flags.gpu_type)
    return Machine(
        name=here.name if flags.gpu_type is None else f"{num_gpus} x {flags.gpu_type}",
        num_processes=num_gpus,
        num_local_processes=min(num_gpus, max(MOST_GPUS_PER_MACHINE, here.num_local_processes)),
        gpu_bytes=here.gpu_bytes if flags.gpu_type is None else find_gpu_type(flags.gpu_type).memory_bytes,
        gpu_type=kind,
        host_bytes=flags.host_bytes or (here.host_bytes if flags.gpu_type is None else None),
    )
