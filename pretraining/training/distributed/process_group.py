"""Bring the processes of a run together, whoever started them: deepspeed, torchrun, mpirun, or python3 alone."""

import atexit
import errno
import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch

# Before deepspeed is imported: without a GPU it would warn in every process that it falls back to the CPU.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import deepspeed.ops
from deepspeed.constants import TORCH_DISTRIBUTED_DEFAULT_PORT
from deepspeed.utils import logger as deepspeed_logger
from torch.distributed import HashStore, Store, TCPStore

from pretraining.cli.program import exit_process
from pretraining.errors import UserError
from pretraining.system.gpus import driver_gpu_names
from pretraining.system.launchers import (
    LOOPBACK,
    check_cores,
    free_port,
    has_launcher,
    num_local_processes,
    num_processes,
)
from pretraining.system.processes import ProcessHandle
from pretraining.training.distributed.collectives import all_gather_objects

LOOPBACK_SCHEME = "loopback"
STORE_BACKLOG = 1024  # ranks that connect at once

logger = logging.getLogger(__name__)


def has_gpu() -> bool:
    """Whether torch can use a GPU here."""
    return torch.cuda.is_available()


def smallest_gpu_bytes() -> int | None:
    """Memory of the smallest GPU that torch can use, None where there is none."""
    numbers = range(torch.cuda.device_count() if has_gpu() else 0)
    return min((torch.cuda.get_device_properties(number).total_memory for number in numbers), default=None)


def check_num_processes() -> None:
    """Refuse more processes than this machine has GPUs, or far more than cores where it has no GPU."""
    num_processes = num_local_processes()
    num_gpus = torch.cuda.device_count()
    if has_gpu() and num_processes > num_gpus:
        raise UserError(f"--num_gpus={num_processes}: this machine has {num_gpus}; start with --num_gpus={num_gpus}")
    if not has_gpu():
        _warn_of_turns(num_processes, num_cores=check_cores())
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


def _warn_of_turns(num_processes: int, *, num_cores: int) -> None:
    if num_processes > num_cores:
        logger.warning(
            "%d processes take turns on %d cores; --num_gpus=%d is faster", num_processes, num_cores, num_cores
        )


def init_process_group(*, timeout_seconds: int) -> None:
    """Make the process group. It must exist before the first ZeRO-3 parameter does.

    On CPU the Trainer makes a group of its own that DeepSpeed does not know, and `zero.Init` then takes the run for
    one of a single process; so DeepSpeed makes it here, on every path alike.
    """
    deepspeed_logger.setLevel("WARNING")
    # A C++ op for inference only, which would be compiled for a minute, or fail where there is no compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not has_launcher():
        _become_single_process()
    backend, timeout = "nccl" if has_gpu() else "gloo", timedelta(seconds=timeout_seconds)
    try:
        deepspeed.init_distributed(
            backend, timeout=timeout, init_method=_init_method(), distributed_port=_mpi_port(), verbose=False
        )
    except (OSError, torch.distributed.DistNetworkError) as error:
        if "EADDRINUSE" not in str(error) and getattr(error, "errno", None) != errno.EADDRINUSE:
            raise
        port = os.environ.get("MASTER_PORT")
        raise UserError(f"--master_port={port}: another run uses it; give the launcher another one") from None
    if has_gpu():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # otherwise every rank would take memory on the first GPU


def _init_method() -> str | None:
    """How ranks find each other: on the loopback interface where all run on this machine, else as torch does it.

    torch's own store accepts connections from the whole network without authentication, and unpickles what it is sent.
    """
    if num_processes() != num_local_processes():
        return None
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else that of the host name, which may be the network's
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None  # torchrun's own process holds the store
    return f"{LOOPBACK_SCHEME}://"


def _mpi_port() -> int:
    """Where ranks meet that MPI brings together: a free port of this machine, which two runs at once need."""
    if "RANK" in os.environ or num_processes() != num_local_processes():
        return TORCH_DISTRIBUTED_DEFAULT_PORT  # the launcher has chosen one, or no rank knows what is free elsewhere
    os.environ.setdefault("OMPI_MCA_btl", "^tcp")  # else Open MPI accepts connections from the network too
    from mpi4py import MPI  # as DeepSpeed does, which asks it for the ranks

    return MPI.COMM_WORLD.bcast(free_port() if MPI.COMM_WORLD.rank == 0 else None)


def _loopback_rendezvous(_: str, *, timeout: timedelta, **_options: Any) -> Iterator[tuple[Store, int, int]]:
    """A store that no other machine can reach; without any socket for a single process."""
    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if size == 1:
        store: Store = HashStore()
    elif rank == 0:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart comes before TIME_WAIT is over
            listener.bind((LOOPBACK, port))
            listener.listen(STORE_BACKLOG)
            store = TCPStore(LOOPBACK, port, size, True, timeout, master_listen_fd=listener.detach())
    else:
        store = TCPStore(LOOPBACK, port, size, False, timeout)
    store.set_timeout(timeout)
    yield store, rank, size


torch.distributed.register_rendezvous_handler(LOOPBACK_SCHEME, _loopback_rendezvous)


def local_peers() -> dict[int, ProcessHandle]:
    """The other processes of this run that this one can see, on the same machine and in the same container, by rank."""
    place = (Path("/proc/sys/kernel/random/boot_id").read_text(), str(Path("/proc/self/ns/pid").readlink()))
    ours = ProcessHandle.of(os.getpid())
    found = enumerate(all_gather_objects((place, ours)))
    return {rank: other for rank, (its_place, other) in found if its_place == place and other != ours}


def shutdown_process_group(exit_code: int = 0) -> NoReturn:
    """End every process of a run that is complete, or was stopped; see `exit_process` for why not by returning."""
    for worker in multiprocessing.active_children():  # of a DataLoader, which would be waited for
        worker.kill()
    atexit._run_exitfuncs()  # where trackers such as wandb send what they still hold
    torch.distributed.barrier()  # a launcher ends the others when one leaves with a code
    torch.distributed.destroy_process_group()
    if "mpi4py.MPI" in sys.modules:  # DeepSpeed asked MPI for the ranks, and mpirun waits for the goodbye of each
        sys.modules["mpi4py.MPI"].Finalize()
    exit_process(exit_code)


def _become_single_process() -> None:
    """What a launcher of one process would set; a free port, so that two runs on a machine do not meet."""
    port = str(free_port())
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR=LOOPBACK, MASTER_PORT=port)
