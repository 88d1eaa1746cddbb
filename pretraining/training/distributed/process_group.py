"""The process group of a run, started by deepspeed, torchrun, mpirun or python3 alone."""

import atexit
import errno
import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NoReturn

import torch

# Before deepspeed is imported: without a GPU it would warn in every process that it falls back to the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.constants import TORCH_DISTRIBUTED_DEFAULT_PORT
from deepspeed.utils import logger as deepspeed_logger
from torch.distributed import HashStore, Store, TCPStore

from pretraining.cli.program import exit_process
from pretraining.errors import UserError
from pretraining.planning.footprint import NCCL_BYTES
from pretraining.planning.layout import CONTEXT_BYTES
from pretraining.system.gpus import driver_gpu_names
from pretraining.system.launchers import (
    LOOPBACK,
    check_cores,
    free_port,
    has_launcher,
    num_local_processes,
    num_processes,
    spans_machines,
)
from pretraining.system.machines.slurm import is_slurm_task
from pretraining.system.processes import ProcessHandle, machine_identity
from pretraining.training.distributed.collectives import all_gather_objects
from pretraining.training.distributed.deepspeed_internals import disable_shm_op, import_muon_without_compiler

LOOPBACK_SCHEME = "loopback"
STORE_BACKLOG = 1024  # ranks that connect at once

logger = logging.getLogger(__name__)


def has_gpu() -> bool:
    """Whether torch can use a GPU of this machine."""
    return torch.cuda.is_available()


def smallest_gpu_bytes() -> int | None:
    """Memory of the smallest GPU that torch can use; None without GPUs."""
    numbers = range(torch.cuda.device_count() if has_gpu() else 0)
    return min((torch.cuda.get_device_properties(number).total_memory for number in numbers), default=None)


def check_num_processes() -> None:
    """Reject more processes than this machine has GPUs, or without GPUs far more than cores.

    Raises:
        UserError: with the number of processes to start.
    """
    num_processes = num_local_processes()
    num_gpus = torch.cuda.device_count()
    if has_gpu() and num_processes > num_gpus and is_slurm_task():
        raise UserError(
            f"srun: {num_processes} tasks on this machine, and each sees {num_gpus} of its GPUs; start with "
            f"--gpu-bind=none --gpus-per-node={num_processes} in place of --gpus-per-task, or with "
            f"--ntasks-per-node={num_gpus}"
        )
    if has_gpu() and num_processes > num_gpus:
        raise UserError(f"--num_gpus={num_processes}: this machine has {num_gpus}; start with --num_gpus={num_gpus}")
    if not has_gpu():
        num_cores = check_cores()
        if num_processes > num_cores:
            logger.warning(
                "%d processes take turns on %d cores; --num_gpus=%d is faster", num_processes, num_cores, num_cores
            )
    if not has_launcher() and (number := os.environ.get("SLURM_NTASKS", "1")) != "1":
        logger.warning("SLURM_NTASKS=%s: this process trains alone; `srun python3 pretrain.py` trains with all", number)
    if not has_gpu():
        _warn_of_missing_gpus()


def _warn_of_missing_gpus() -> None:
    """Warn where this machine, or its build of torch, suggests that GPUs were expected; not if they are hidden."""
    names = driver_gpu_names()
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not (names or torch.version.cuda):
        return
    found = (
        f"the driver has {len(names)} GPUs ({names[0]}) that torch {torch.__version__} cannot use"
        if names
        else f"torch {torch.__version__} is built for GPUs, but no NVIDIA driver answers"
    )
    logger.warning("%s, so this runs on the CPU; python3 -m tools.doctor gives the reason and the remedy", found)


def init_process_group(*, timeout_seconds: int) -> None:
    """Create the process group, before the first ZeRO-3 parameter.

    DeepSpeed creates it, on every path: on a CPU the Trainer would create a group that DeepSpeed does not know, and
    `zero.Init` would take the run for one of a single process.

    Raises:
        UserError: when another run uses the port.
    """
    deepspeed_logger.setLevel("WARNING")
    disable_shm_op()
    import_muon_without_compiler()
    if not has_launcher():
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR=LOOPBACK)
        os.environ["MASTER_PORT"] = str(free_port())  # so that two runs on a machine do not meet
    backend, timeout = "nccl" if has_gpu() else "gloo", timedelta(seconds=timeout_seconds)
    try:
        deepspeed.init_distributed(
            backend, timeout=timeout, init_method=_init_method(), distributed_port=_mpi_port(), verbose=False
        )
    except (OSError, torch.distributed.DistNetworkError) as error:
        if "EADDRINUSE" not in str(error) and getattr(error, "errno", None) != errno.EADDRINUSE:
            raise
        port = os.environ.get("MASTER_PORT")
        raise UserError(f"--master_port={port}: another run uses it; pass another one to the launcher") from None
    if has_gpu():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # else every rank would allocate on the first GPU


def _init_method() -> str | None:
    """Rendezvous on the loopback interface where all ranks are on this machine, else as torch does it.

    torch's store accepts connections from the network without authentication, and unpickles what it receives.
    """
    if spans_machines():
        return None
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else that of the host name, maybe the network's
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None  # the store is in torchrun's process
    return f"{LOOPBACK_SCHEME}://"


def _mpi_port() -> int:
    """The port at which ranks started by MPI meet: a free one of this machine, so that two runs can train at once."""
    if "RANK" in os.environ:
        return TORCH_DISTRIBUTED_DEFAULT_PORT  # the launcher has set the port, or the meeting of several machines
    os.environ.setdefault("OMPI_MCA_btl", "^tcp")  # else Open MPI accepts connections from the network too
    from mpi4py import MPI  # as DeepSpeed does, which asks it for the ranks

    return MPI.COMM_WORLD.bcast(free_port() if MPI.COMM_WORLD.rank == 0 else None)


def _loopback_rendezvous(_: str, *, timeout: timedelta, **_options: Any) -> Iterator[tuple[Store, int, int]]:
    """Create a store that no other machine can reach; for a single process one without a socket."""
    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if size == 1:
        store: Store = HashStore()
    elif rank == 0:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart may find it in TIME_WAIT
            listener.bind((LOOPBACK, port))
            listener.listen(STORE_BACKLOG)
            store = TCPStore(LOOPBACK, port, size, True, timeout, master_listen_fd=listener.detach())
    else:
        store = TCPStore(LOOPBACK, port, size, False, timeout)
    store.set_timeout(timeout)
    yield store, rank, size


torch.distributed.register_rendezvous_handler(LOOPBACK_SCHEME, _loopback_rendezvous)


def limit_gpu_memory(limit: int | None) -> None:
    """Let torch allocate at most what --gpu_memory_limit leaves beside CUDA's context and NCCL; nothing on a CPU."""
    if limit is None:
        return
    if not has_gpu():
        logger.warning("--gpu_memory_limit: no GPU is here, so the memory of each process is planned, but not limited")
        return
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    beside = CONTEXT_BYTES + (NCCL_BYTES if num_processes() > 1 else 0)
    torch.cuda.set_per_process_memory_fraction(min(1.0, (limit - beside) / total))


def local_peers() -> dict[int, ProcessHandle]:
    """Return the other processes of this run in the same machine and PID namespace, by rank. Collective."""
    machine, own = machine_identity(), ProcessHandle.of(os.getpid())
    found = enumerate(all_gather_objects((machine, own)))
    return {rank: other for rank, (others, other) in found if others == machine and other != own}


def shutdown_process_group(exit_code: int = 0) -> NoReturn:
    """End all processes of a run that is complete or was stopped. Collective; see `exit_process` for the way."""
    for worker in multiprocessing.active_children():  # of DataLoaders; Python would wait for them
        worker.kill()
    atexit._run_exitfuncs()  # trackers such as wandb send their queues here
    torch.distributed.barrier()  # a launcher ends the others when one exits with a code
    torch.distributed.destroy_process_group()
    if "mpi4py.MPI" in sys.modules:  # DeepSpeed initialized MPI, and mpirun waits until each rank finalizes it
        sys.modules["mpi4py.MPI"].Finalize()
    exit_process(exit_code)
