"""Bring the processes of a run together, whoever started them: deepspeed, torchrun, mpirun, or python3 alone."""

import atexit
import logging
import os
import socket
import sys
from datetime import timedelta
from typing import NoReturn

import torch

# Before deepspeed is imported: without a GPU it would warn in every process that it falls back to the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops
from deepspeed.utils import logger as deepspeed_logger

from pretraining.cli.errors import UserError, leave
from pretraining.cli.launchers import has_launcher, num_local_processes
from pretraining.machine.gpus import driver_gpu_names

logger = logging.getLogger(__name__)


def has_gpu() -> bool:
    """Whether torch can use a GPU here."""
    return torch.cuda.is_available()


def smallest_gpu_bytes() -> int | None:
    """Memory of the smallest GPU that torch can use, None where there is none."""
    numbers = range(torch.cuda.device_count() if has_gpu() else 0)
    return min((torch.cuda.get_device_properties(number).total_memory for number in numbers), default=None)


def check_num_processes() -> None:
    """Refuse more processes on this machine than it has GPUs, or cores where it has no GPU."""
    num_processes = num_local_processes()
    num_gpus = torch.cuda.device_count()
    if has_gpu() and num_processes > num_gpus:
        raise UserError(f"--num_gpus={num_processes}: this machine has {num_gpus}; start with --num_gpus={num_gpus}")
    num_cores = os.cpu_count() or 1  # not the affinity: mpirun binds each rank to a core of its own
    if not has_gpu() and num_processes > num_cores:
        raise UserError(
            f"--num_gpus={num_processes}: this machine has no GPU and {num_cores} cores, one process each at most; "
            f"start with --num_gpus={num_cores}"
        )
    if not has_launcher() and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise UserError("srun: its tasks would each train alone; start one task that runs deepspeed or torchrun")
    names = driver_gpu_names()
    if names and not has_gpu() and os.environ.get("CUDA_VISIBLE_DEVICES", names):
        logger.warning(
            "the driver sees %d GPUs (%s) that torch %s cannot use, so this runs on the CPU; install torch for CUDA",
            len(names),
            names[0],
            torch.__version__,
        )


def join_processes(*, timeout_seconds: int) -> None:
    """Make the process group. It must exist before the first ZeRO-3 parameter does.

    On CPU the Trainer makes a group of its own that DeepSpeed does not know, and `zero.Init` then takes the run for
    one of a single process; so DeepSpeed makes it here, on every path alike.
    """
    deepspeed_logger.setLevel("WARNING")
    # A C++ op for inference only, which would be compiled for a minute, or fail where there is no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not has_launcher():
        _become_single_process()
    deepspeed.init_distributed(
        dist_backend="nccl" if has_gpu() else "gloo", timeout=timedelta(seconds=timeout_seconds), verbose=False
    )
    if has_gpu():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # otherwise every rank would take memory on the first GPU


def leave_processes() -> NoReturn:
    """End every process of a run that is complete; see `leave` for why not by returning."""
    torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()  # where trackers such as wandb send what they still hold
    if "mpi4py.MPI" in sys.modules:  # DeepSpeed asked MPI for the ranks, and mpirun waits for the goodbye of each
        sys.modules["mpi4py.MPI"].Finalize()
    leave(0)


def _become_single_process() -> None:
    """What a launcher of one process would set; a free port, so that two runs on a machine do not meet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
