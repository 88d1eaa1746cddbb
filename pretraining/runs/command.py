"""How a run was started: launcher, number of processes, program and flags."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from pretraining.system.launchers import num_local_processes, num_processes
from pretraining.system.machines.slurm import is_slurm_task
from pretraining.system.privacy import mask_words

# Flags for the number of processes per machine and of machines; mpirun and others have one for all processes.
LAUNCHERS = {
    "deepspeed": ("--num_gpus={}", "--num_nodes={}"),
    "torchrun": ("--nproc_per_node={}", "--nnodes={}"),
    "mpirun": ("-n {}", None),
    "mpiexec": ("-n {}", None),
    "srun": ("--ntasks={}", None),
    "accelerate": ("launch --num_processes={}", None),
}
OTHER_NAMES = {
    "prterun": "mpirun",
    "torch.distributed.run": "torchrun",
    "deepspeed.launcher.runner": "deepspeed",
    "deepspeed.launcher.launch": "deepspeed",
}


def command() -> str:
    """The command of this run: launcher, number of processes, program and its flags, without secrets.

    Other words of the launcher's command line are dropped: `bash -c` and `mpirun -x` can contain keys and passwords.
    """
    program = Path(sys.argv[0]).name
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank=")]  # added by deepspeed
    return shlex.join([*_launcher(program), program, *mask_words(words)])


def _launcher(program: str) -> list[str]:
    """The words before the program's name."""
    name = _launcher_name(program) or ("srun" if is_slurm_task() else None)
    if name is None:
        size = [f"WORLD_SIZE={num_processes()}"] if num_processes() > 1 else []
        return [*size, "python3"]
    per_machine, of_machines = LAUNCHERS[name]
    if of_machines is None:
        return [name, *per_machine.format(num_processes()).split()]
    num_machines = num_processes() // num_local_processes()
    machines = [of_machines.format(num_machines)] if num_machines > 1 else []
    return [name, *machines, *per_machine.format(num_local_processes()).split()]


def _launcher_name(program: str) -> str | None:
    """The launcher among the parent processes whose command line contains the program, None without one."""
    for words in _commands_above():
        names = [Path(word).name for word in words]
        if program in names:
            before = names[: names.index(program)]
            found = next((known for name in before if (known := OTHER_NAMES.get(name, name)) in LAUNCHERS), None)
            if found is not None:
                return found
    return None


def _commands_above() -> Iterator[list[str]]:
    """The command lines of this process and its parents, as far as this user may read them."""
    process = psutil.Process()
    with suppress(psutil.Error):
        for parent in (process, *process.parents()):
            yield parent.cmdline()
