"""What launchers (deepspeed, torchrun, mpirun) set in the environment: ranks, sizes, and who started a process."""

import os
import socket
import sys
import time
from pathlib import Path

from pretraining.errors import UserError, raise_problems
from pretraining.system.cores import machine_cores
from pretraining.system.files import private_dir
from pretraining.system.processes import ProcessHandle, stat_words

# The command `deepspeed` of this environment. Its script is not found in every PATH, and does not start where the path
# of the environment contains a space.
DEEPSPEED = (sys.executable, "-m", "deepspeed.launcher.runner")
LOOPBACK = "127.0.0.1"
MPI_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
RANK_VARIABLES = ("RANK", *MPI_RANK_VARIABLES)  # `machines.slurm` translates what srun sets
PMIX_VARIABLE = "PMIX_RANK"  # comes without a size; srun sets it for a single process too
SIZE_VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
# What `accelerate launch` sets for the flags that train without DeepSpeed, or hide its config from the Trainer.
ACCELERATE_FLAGS = {
    "ACCELERATE_USE_CPU": "--cpu",
    "ACCELERATE_USE_FSDP": "--use_fsdp",
    "ACCELERATE_USE_MEGATRON_LM": "--use_megatron_lm",
}
LAUNCHER_VARIABLE = "PRETRAINING_LAUNCHER"  # of the parent, in children that take part in its run
# The folder of tools.supervise, and the restart; see `supervision`. To other machines deepspeed passes on what begins
# with PYTHON.
SUPERVISOR_VARIABLE = "PYTHON_PRETRAINING_SUPERVISOR"
RESTART_VARIABLE = "PYTHON_PRETRAINING_RESTART"
# deepspeed's first: accelerate sets the other to 1 under it.
LOCAL_SIZE_VARIABLES = ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")

# Without a GPU. Processes that take turns on a core are slow, but right: a laptop can try what a cluster will do.
MAX_PROCESSES_PER_CORE = 4


def check_launch_variables() -> None:
    """Check what a launcher, or the user in its place, has set.

    Raises:
        UserError: naming each variable that is not a number, or a rank that is not below the number of processes.
    """
    names = (*RANK_VARIABLES, *LOCAL_RANK_VARIABLES, *SIZE_VARIABLES, *LOCAL_SIZE_VARIABLES)
    problems = [
        f"{name}={os.environ[name]}: is not a whole number of {smallest} or more; unset it, or start with a launcher"
        for name in names
        if os.environ.get(name) and _number(name) is None
        for smallest in (_smallest(name),)
    ]
    if not problems and process_rank() >= num_processes():
        problems.append(
            f"rank {process_rank()} of {num_processes()} processes: ranks count from 0; set {RANK_VARIABLES[0]} and "
            f"{SIZE_VARIABLES[0]} both, as launchers do, or unset them"
        )
    raise_problems(problems or _pmix_problems())


def _pmix_problems() -> list[str]:
    """What is wrong if a launcher counts its processes by PMIx alone, which leaves each of several to train alone."""
    rank = os.environ.get(PMIX_VARIABLE)
    num_tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS", "1")
    if has_launcher() or not rank or (rank == "0" and num_tasks == "1"):
        return []
    return [
        f"{PMIX_VARIABLE}={rank}: one of several processes, whose number is not known; set {RANK_VARIABLES[0]} and "
        f"{SIZE_VARIABLES[0]} both, as launchers do, or unset it"
    ]


def accelerate_problem() -> str | None:
    """What is wrong with the flags of `accelerate launch`, if that is the launcher."""
    flags = [flag for name, flag in ACCELERATE_FLAGS.items() if os.environ.get(name, "").lower() == "true"]
    if not flags:
        return None
    return (
        f"accelerate launch {' '.join(flags)}: trains without DeepSpeed; use `accelerate launch --use_deepspeed "
        "--zero_stage 3`, deepspeed, torchrun, mpirun or python3"
    )


def has_launcher() -> bool:
    """Whether this process is one of several that a launcher started."""
    return any(os.environ.get(name) for name in RANK_VARIABLES)


def process_rank() -> int:
    """Rank of this process among all; 0 without a launcher."""
    return _first_number(RANK_VARIABLES, 0)


def local_rank() -> int:
    """Rank of this process among those of this machine; its rank among all if the launcher sets no other."""
    return _first_number(LOCAL_RANK_VARIABLES, process_rank())


def launcher_identity() -> str:
    """The same for all processes of this machine that one launcher started, and for no others."""
    if LAUNCHER_VARIABLE in os.environ:
        return os.environ[LAUNCHER_VARIABLE]
    return str(ProcessHandle.of(os.getppid()))


def child_environment() -> dict[str, str]:
    """The environment of a child that takes part in this run as this rank, outside MPI and torchrun's own store."""
    environment = {name: value for name, value in os.environ.items() if name != SUPERVISOR_VARIABLE}
    if has_launcher():
        environment |= {"RANK": str(process_rank()), "LOCAL_RANK": str(local_rank())}
        environment |= {"WORLD_SIZE": str(num_processes()), "LOCAL_WORLD_SIZE": str(num_local_processes())}
        environment |= {LAUNCHER_VARIABLE: launcher_identity(), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return environment


def free_port() -> int:
    """A port of the loopback interface that is free now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return listener.getsockname()[1]


def meeting_dir() -> Path:
    """Where the processes of this machine that one launcher started leave files for each other.

    Raises:
        UserError: when another user was there first.
    """
    return private_dir(f"run-{launcher_identity()}")


def process_age_seconds(pid: int | None = None) -> float:
    """How long ago a process began, this one if no other is named."""
    started = int(stat_words(pid or os.getpid())[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def num_processes() -> int:
    """Processes of this run on all machines; 1 without a launcher."""
    return _first_number(SIZE_VARIABLES, 1)


def num_local_processes() -> int:
    """Processes of this run on this machine; 1 without a launcher."""
    return _first_number(LOCAL_SIZE_VARIABLES, 1)


def spans_machines() -> bool:
    """Whether processes of this run are on other machines."""
    return num_processes() != num_local_processes()


def check_cores() -> int:
    """The cores of a machine without GPUs, for all processes of this run.

    Raises:
        UserError: when there are far more processes than cores.
    """
    num_processes, num_cores = num_local_processes(), machine_cores()
    most = num_cores * MAX_PROCESSES_PER_CORE
    if num_processes > most:
        raise UserError(
            f"--num_gpus={num_processes}: this machine has no GPU and {num_cores} cores, for {most} processes at most; "
            f"start with --num_gpus={num_cores}"
        )
    return num_cores


def _first_number(names: tuple[str, ...], default: int) -> int:
    numbers = (_number(name) for name in names if os.environ.get(name))
    return next((number for number in numbers if number is not None), default)


def _smallest(name: str) -> int:
    return 1 if name in SIZE_VARIABLES + LOCAL_SIZE_VARIABLES else 0


def _number(name: str) -> int | None:
    """The number in a variable; None where it is none, which `check_launch_variables` reports."""
    text = os.environ[name]
    is_number = text.isascii() and text.isdecimal() and len(text) < 10
    return int(text) if is_number and int(text) >= _smallest(name) else None
