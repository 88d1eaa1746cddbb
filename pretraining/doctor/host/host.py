"""Cores, memory, shared memory and clock of this machine, as this process may use them."""

import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pretraining.doctor.finding import Finding, failure, gigabytes, ok, warning
from pretraining.doctor.gpu.nvml import driver_gpus
from pretraining.system.cores import core_quota, usable_cores
from pretraining.system.host import available_host_bytes

SHARED_MEMORY = Path("/dev/shm")
DOCKER_SHARED_BYTES = 64 * 2**20  # what a container gets unless told otherwise
LEAST_SHARED_BYTES = 2**30
DOCKER = "docker run --gpus all --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 IMAGE"
LEAST_HOST_BYTES = 4e9
CORES_PER_GPU = 2  # one for the process, one for what reads its data
LEAST_KERNEL = (5, 5)
OWN_FILE = Path(__file__)


def cores(_: Sequence[Path]) -> Iterator[Finding]:
    """Cores of the machine, those that this process may run on, and its share of their time."""
    num_cores, num_own, num_gpus = os.cpu_count() or 1, len(os.sched_getaffinity(0)), len(driver_gpus())
    quota = core_quota()
    figure = f"{num_own} of {num_cores} may be used" if num_own < num_cores else f"{num_cores}"
    figure += f", time of {quota:.1f}" if quota is not None else ""
    figures = {"cores": num_cores, "affinity": num_own, "quota": quota}
    if usable_cores() < max(1, CORES_PER_GPU * num_gpus):
        figure += f"; {num_gpus} GPUs want {CORES_PER_GPU * num_gpus}" if num_gpus else "; less than one"
        yield warning(
            "cores", figure, f"docker run --cpus={num_cores} --cpuset-cpus=0-{num_cores - 1} IMAGE", **figures
        )
    else:
        yield ok("cores", figure, **figures)


def memory(_: Sequence[Path]) -> Iterator[Finding]:
    """Memory that a run may still take, within the limits of container or job, and swap."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}
    free = available_host_bytes()
    figures = {"total_bytes": sizes["MemTotal"], "available_bytes": free, "swap_bytes": sizes["SwapTotal"]}
    swap_used = sizes["SwapTotal"] - sizes["SwapFree"]
    figure = f"{gigabytes(free)} of {gigabytes(sizes['MemTotal'])} available, "
    figure += (
        f"{gigabytes(swap_used)} of {gigabytes(sizes['SwapTotal'])} swap used" if sizes["SwapTotal"] else "no swap"
    )
    fix = "ps -eo pid,user,rss,args --sort=-rss | head"
    yield warning("memory", figure, fix, **figures) if free < LEAST_HOST_BYTES else ok("memory", figure, **figures)


def shared_memory(_: Sequence[Path]) -> Iterator[Finding]:
    """Room in /dev/shm, through which processes of a run exchange data."""
    room = shutil.disk_usage(SHARED_MEMORY)
    yield judge_shared_memory(room.total, room.free, num_gpus=len(driver_gpus()))


def judge_shared_memory(total: int, free: int, *, num_gpus: int) -> Finding:
    """Docker's 64 MB are too little for NCCL between GPUs ("No space left on device", or a bus error)."""
    figure, figures = f"{gigabytes(free)} of {gigabytes(total)} free", {"total_bytes": total, "free_bytes": free}
    if total <= DOCKER_SHARED_BYTES and num_gpus > 1:
        return failure("shared memory", f"{figure}, too little for NCCL on {num_gpus} GPUs", DOCKER, **figures)
    if total <= DOCKER_SHARED_BYTES:
        return warning("shared memory", f"{figure}, what a container gets unless told otherwise", DOCKER, **figures)
    if free < LEAST_SHARED_BYTES:
        return warning("shared memory", figure, "ls -lS /dev/shm | head", **figures)
    return ok("shared memory", figure, **figures)


def kernel(_: Sequence[Path]) -> Iterator[Finding]:
    """Linux is new enough; accelerate warns of hanging processes on an older one."""
    release = platform.release()
    numbers = tuple(int(word) for word in re.findall(r"\d+", release)[:2])
    if numbers < LEAST_KERNEL:
        figure = f"Linux {release}; before 5.5 processes of a run may hang"
        yield warning(
            "kernel", figure, "sudo apt-get install --install-recommends linux-generic-hwe-$(lsb_release -rs)"
        )
    else:
        yield ok("kernel", f"Linux {release}")


def clock(_: Sequence[Path]) -> Iterator[Finding]:
    """The clock is not before this file was made: certificates and signatures depend on it."""
    now, least = time.time(), OWN_FILE.stat().st_mtime
    figure = datetime.fromtimestamp(now, UTC).isoformat(" ", "seconds")
    if now < least:
        behind = f"{figure}, {(least - now) / 3600:.0f} h before a file of this suite was written"
        yield failure("clock", behind, "sudo timedatectl set-ntp true")
    else:
        yield ok("clock", figure)
