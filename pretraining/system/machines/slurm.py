"""Tasks of Slurm: `srun python3 pretrain.py` starts one process per rank, with other variables than torchrun.

Slurm sets some of them in a batch script and in the shell of salloc too (SLURM_NTASKS, SLURM_PROCID), where a process
is not a task. Those of the step are in tasks alone.
"""

import os
import re

STEP_SIZE_VARIABLE = "SLURM_STEP_NUM_TASKS"
# Of launchers that a task may have started: their ranks count, not Slurm's.
INNER_RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK")
FIRST_PORT = 15_000
NUM_PORTS = 15_000  # below 32,768, where the ports begin that Linux chooses
STEPS_PER_JOB = 10  # that get different ports


def adopt_slurm_task() -> None:
    """Set for a task of srun what torchrun would set: rank, sizes, and where rank 0 is; a value of the user's stays.

    A step of one task, e.g. the shell of an interactive salloc, is not a run of several processes.
    """
    size = os.environ.get(STEP_SIZE_VARIABLE, "")
    is_inner = any(os.environ.get(name) for name in INNER_RANK_VARIABLES)
    if is_inner or not size.isdecimal() or int(size) < 2:
        return
    found = {
        "RANK": os.environ.get("SLURM_PROCID"),
        "WORLD_SIZE": size,
        "LOCAL_RANK": os.environ.get("SLURM_LOCALID"),
        "LOCAL_WORLD_SIZE": _num_local_tasks(),
        "MASTER_ADDR": first_host(os.environ.get("SLURM_STEP_NODELIST", "")),
        "MASTER_PORT": str(_port()),
    }
    for name, value in found.items():
        if value:
            os.environ.setdefault(name, value)


def is_slurm_task() -> bool:
    """Whether this process is a rank because srun started it."""
    size = os.environ.get(STEP_SIZE_VARIABLE)
    ranks = [os.environ.get(name) for name in ("RANK", "SLURM_PROCID")]
    return size not in (None, "1") and os.environ.get("WORLD_SIZE") == size and ranks[0] == ranks[1]


def first_host(hosts: str) -> str:
    """The first host of a list as Slurm writes it, on which its task 0 is.

    `scontrol show hostnames` gives the same, but is not in a container.

    >>> [first_host("gpu[07-09,12]"), first_host("a-3,b[1-2]"), first_host("rack[2-3]n[10-11]-ib")]
    ['gpu07', 'a-3', 'rack2n10-ib']
    """
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", hosts).split(",")[0]


def task_counts(text: str) -> list[int]:
    """The number of tasks on each node of a step.

    >>> task_counts("8(x2),3")
    [8, 8, 3]
    """
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(number) for number, times in found for _ in range(int(times or 1))]


def _num_local_tasks() -> str | None:
    counts = task_counts(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = os.environ.get("SLURM_NODEID", "")
    if node.isdecimal() and int(node) < len(counts):
        return str(counts[int(node)])
    return os.environ.get("SLURM_NTASKS_PER_NODE")


def _port() -> int:
    """A port for this step: two jobs, or two steps of a job, may share a machine."""
    texts = (os.environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    job, step = (int(text) if text.isdecimal() else 0 for text in texts)
    return FIRST_PORT + (STEPS_PER_JOB * job + step % STEPS_PER_JOB) % NUM_PORTS
