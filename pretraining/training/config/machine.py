"""The machine a run is planned for: this one, or the one that the flags describe."""

import torch

from pretraining.cli.arguments.run import PlanArguments
from pretraining.errors import UserError
from pretraining.planning.machine import MOST_GPUS_PER_MACHINE, MachineSpec
from pretraining.system.gpus import find_gpu_type, gpu_type_of
from pretraining.system.host import available_host_bytes
from pretraining.system.launchers import num_local_processes, num_processes
from pretraining.training.distributed.process_group import has_gpu, smallest_gpu_bytes


def this_machine() -> MachineSpec:
    """The GPUs that the processes of this start have, and the memory that is available now."""
    gpu_bytes = smallest_gpu_bytes()
    driver_name = torch.cuda.get_device_name() if has_gpu() else None
    return MachineSpec(
        name="this machine" if driver_name is None else f"{num_processes()} x {driver_name}",
        num_processes=num_processes(),
        num_local_processes=num_local_processes(),
        gpu_bytes=gpu_bytes,
        gpu_type=None if driver_name is None else gpu_type_of(driver_name),
        host_bytes=available_host_bytes(),
    )


def planned_machine(flags: PlanArguments) -> MachineSpec:
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
    return MachineSpec(
        name=here.name if flags.gpu_type is None else f"{num_gpus} x {flags.gpu_type}",
        num_processes=num_gpus,
        num_local_processes=min(num_gpus, max(MOST_GPUS_PER_MACHINE, here.num_local_processes)),
        gpu_bytes=here.gpu_bytes if flags.gpu_type is None else find_gpu_type(flags.gpu_type).memory_bytes,
        gpu_type=kind,
        host_bytes=flags.host_bytes or (here.host_bytes if flags.gpu_type is None else None),
    )
