"""Cores, memory, shared memory and limits of this machine, as this process may use them."""

import os
import resource
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, ok, warning, warning_if
from pretraining.system.cores import core_quota, group_folders, usable_cores
from pretraining.system.formatting import format_bytes
from pretraining.system.gpus import driver_gpu_names
from pretraining.system.host import available_host_bytes

CORES_PER_GPU = 2  # one for the process, one for what reads its data
MIN_HOST_BYTES = 4e9
SHARED_MEMORY = Path("/dev/shm")
DOCKER_SHARED_BYTES = 64 * 2**20  # Docker's default
MIN_SHARED_BYTES = 2**30
DOCKER = "docker run --gpus all --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 IMAGE"
INFINIBAND = Path("/dev/infiniband")
MIN_FREE_PROCESSES = 1024  # threads count too: a process of a run has dozens
UNLIMITED = resource.RLIM_INFINITY


# Of each limit: the flag of ulimit, its number, what is needed, and what for.
LIMITS = {
    "open files": ("n", resource.RLIMIT_NOFILE, 1024, "shards, sockets and what data workers share"),
    "processes": ("u", resource.RLIMIT_NPROC, 4096, "threads count too"),
}


def cores(_: Sequence[Path]) -> Iterator[Finding]:
    """Cores of the machine, those that this process may run on, and its share of their time."""
    num_cores, num_own, num_gpus = os.cpu_count() or 1, len(os.sched_getaffinity(0)), len(driver_gpu_names())
    quota = core_quota()
    figure = f"{num_own} of {num_cores} may be used" if num_own < num_cores else f"{num_cores}"
    figure += f", time of {quota:.1f}" if quota is not None else ""
    figures = {"cores": num_cores, "affinity": num_own, "quota": quota}
    is_little = usable_cores() < CORES_PER_GPU * num_gpus
    figure += f"; {num_gpus} GPUs need {CORES_PER_GPU * num_gpus}" if is_little else ""
    fix = f"docker run --cpus={num_cores} --cpuset-cpus=0-{num_cores - 1} IMAGE"
    yield warning_if(is_little, "cores", figure, fix, **figures)


def memory(_: Sequence[Path]) -> Iterator[Finding]:
    """Memory that a run may still take, within the limits of container or job, and swap."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    free, total, swap = available_host_bytes(), sizes["MemTotal"], sizes["SwapTotal"]
    figures = {"total_bytes": total, "available_bytes": free, "swap_bytes": swap}
    swap_used = f"{format_bytes(swap - sizes['SwapFree'])} of {format_bytes(swap)} swap used" if swap else "no swap"
    figure = f"{format_bytes(free)} of {format_bytes(total)} available, {swap_used}"
    fix = "ps -eo pid,user,rss,args --sort=-rss | head"
    yield warning_if(free < MIN_HOST_BYTES, "memory", figure, fix, **figures)


def shared_memory(_: Sequence[Path]) -> Iterator[Finding]:
    """Space in /dev/shm, through which processes of a run exchange data."""
    space = shutil.disk_usage(SHARED_MEMORY)
    yield assess_shared_memory(space.total, space.free, num_gpus=len(driver_gpu_names()))


def assess_shared_memory(total: int, free: int, *, num_gpus: int) -> Finding:
    """Docker's 64 MB are too little for NCCL between GPUs ("No space left on device", or a bus error)."""
    figure, figures = f"{format_bytes(free)} of {format_bytes(total)} free", {"total_bytes": total, "free_bytes": free}
    if total <= DOCKER_SHARED_BYTES and num_gpus > 1:
        return failure("shared memory", f"{figure}, too little for NCCL on {num_gpus} GPUs", DOCKER, **figures)
    if total <= DOCKER_SHARED_BYTES:
        return warning("shared memory", f"{figure}, the default of a container", DOCKER, **figures)
    return warning_if(free < MIN_SHARED_BYTES, "shared memory", figure, "ls -lS /dev/shm | head", **figures)


def limits(_: Sequence[Path]) -> Iterator[Finding]:
    """The ulimits of open files, processes and locked memory."""
    found = {name: resource.getrlimit(number)[0] for name, (_, number, _, _) in LIMITS.items()}
    small = [name for name, value in found.items() if value != UNLIMITED and value < LIMITS[name][2]]
    for name in small:
        flag, number, minimum, reason = LIMITS[name]
        figure, hard = f"{found[name]}, below the {minimum} that are needed: {reason}", resource.getrlimit(number)[1]
        reachable = minimum * 16 if hard == UNLIMITED else min(minimum * 16, hard)
        yield warning(name, figure, f"ulimit -{flag} {reachable}", limit=found[name])
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    shown = "unlimited" if locked == UNLIMITED else format_bytes(locked)
    if locked != UNLIMITED and INFINIBAND.exists():
        fix = "docker run --ulimit memlock=-1 IMAGE  # or ulimit -l unlimited"
        yield warning("locked memory", f"{shown}: InfiniBand registers more than that", fix)
    if not small:
        values = ["unlimited" if value == UNLIMITED else f"{value:,}" for value in found.values()]
        figure = ", ".join(f"{name} {value}" for name, value in zip(found, values, strict=True))
        yield ok("limits", f"{figure}, locked memory {shown}", **found, memlock=locked)


def control_group(_: Sequence[Path]) -> Iterator[Finding]:
    """Memory and number of processes that container or job allow."""
    allowed = _group_limit("memory", "memory.max", "memory.limit_in_bytes")
    processes, used = _group_limit("pids", "pids.max"), _group_limit("pids", "pids.current") or 0
    figures = {"memory_bytes": allowed, "processes": processes, "processes_used": used}
    figure = f"memory {'unlimited' if allowed is None else format_bytes(allowed)}, "
    figure += f"processes {'unlimited' if processes is None else f'{processes:,}, {used:,} used'}"
    is_little = processes is not None and processes - used < MIN_FREE_PROCESSES
    yield warning_if(is_little, "control group", figure, "docker run --pids-limit=-1 IMAGE", **figures)


def _group_limit(controller: str, *names: str) -> int | None:
    """The smallest value on the way up from this process's group, in cgroup v2 or v1; None where there is none."""
    files = [folder / name for folder in group_folders(controller, Path("/")) for name in names]
    values = [file.read_text(encoding="ascii").strip() for file in files if file.is_file()]
    numbers = [int(value) for value in values if value.isdigit() and int(value) < 2**60]  # v1 writes 2**63 for none
    return min(numbers, default=None)
