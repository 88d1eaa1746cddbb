"""What the launchers (deepspeed, torchrun, mpirun) tell a process about its run, in the environment."""

import os

RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
SIZE_VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
LOCAL_SIZE_VARIABLES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")


def has_launcher() -> bool:
    """Whether this process is one of several that a launcher started."""
    return any(os.environ.get(name) for name in RANK_VARIABLES)


def process_rank() -> int:
    """Rank of this process among all; 0 without a launcher."""
    return _first_number(RANK_VARIABLES, 0)


def num_processes() -> int:
    """Processes of this run on all machines; 1 without a launcher."""
    return _first_number(SIZE_VARIABLES, 1)


def num_local_processes() -> int:
    """Processes of this run on this machine; 1 without a launcher."""
    return _first_number(LOCAL_SIZE_VARIABLES, 1)


def share_cores() -> None:
    """Give each process of this machine its part of the cores; torch reads this once, when it is imported."""
    num_cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, num_cores // num_local_processes())))


def _first_number(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name)), default)
