"""How many cores this process may use, which can be fewer than the machine reports.

A CPU set (taskset, Slurm, docker --cpuset-cpus) limits which cores a process runs on, a quota of a control group
(docker --cpus, Kubernetes) how much of their time it gets. With more threads than that, they wait for each other:
twice as many threads as cores wait twice as long at the end of each matrix multiplication.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

ROOT = Path("/")
BLAS_VARIABLE = "OPENBLAS_NUM_THREADS"
UNLIMITED = ("max", "-1")


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may use: those of its CPU set, and no more than its quota, rounded up; at least 1.

    `root` is where /proc and /sys are.
    """
    return _within_quota(len(os.sched_getaffinity(0)), root)


def compute_cores(root: Path = ROOT) -> int:
    """Cores for one matrix multiplication: physical and, where a processor has two kinds, fast ones.

    The threads of a core share its multipliers, so a second thread adds nothing. A multiplication is split into equal
    parts and ends with the slowest: the efficient cores of Intel's hybrid processors multiply half as wide (two units
    of 128 bits in place of 256) at a lower clock, so that they help only where they are twice as many.
    """
    own = os.sched_getaffinity(0)
    fast = own & _cpus_in(root / "sys/devices/cpu_core/cpus")
    cores = {_siblings(cpu, root) for cpu in fast or own}
    return _within_quota(len(cores), root)


def machine_cores(root: Path = ROOT) -> int:
    """Cores for all processes of a run on this machine: whatever the CPU set, as mpirun binds each rank to a core."""
    return _within_quota(os.cpu_count() or 1, root)


def core_quota(root: Path = ROOT) -> float | None:
    """Cores' worth of time that the control groups of this process allow (v1 or v2), None without a limit."""
    return min(_quotas(root), default=None)


def use_one_blas_thread() -> None:
    """Let NumPy multiply matrices on one core, before it is imported; a setting of the user's own stays.

    For a program that multiplies none: the threads of OpenBLAS look for work before they sleep, 0.15 s of each further
    core at every start (NumPy 2.4 on an Intel Xeon).
    """
    os.environ.setdefault(BLAS_VARIABLE, "1")


def _within_quota(num_cores: int, root: Path) -> int:
    quota = core_quota(root)
    return max(1, num_cores if quota is None else min(num_cores, math.ceil(quota)))


def _quotas(root: Path) -> Iterator[float]:
    """The limit of each group of this process and of those around it."""
    for folder in group_folders("cpu", root):
        with suppress(OSError, ValueError, ZeroDivisionError):
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
            if quota not in UNLIMITED:
                yield int(quota) / int(period)


def _siblings(cpu: int, root: Path) -> frozenset[int]:
    """The CPUs that are threads of the same core as this one; itself alone where that is not known."""
    folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    return frozenset(_cpus_in(folder / "thread_siblings_list") or {cpu})


def _cpus_in(path: Path) -> set[int]:
    """The CPUs of a list as 0-3,8; none where it cannot be read."""
    with suppress(OSError, ValueError):
        ranges = [part.partition("-") for part in path.read_text(encoding="utf-8").strip().split(",") if part]
        return {cpu for first, _, last in ranges for cpu in range(int(first), int(last or first) + 1)}
    return set()


def group_folders(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the groups that may limit "cpu" or "memory", in version 1 and 2, from the inmost outwards.

    `root` is where /proc and /sys are. In a container names of outside lead nowhere, and its own root is at the end.
    """
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            if not controllers:
                mounts = ["sys/fs/cgroup", "sys/fs/cgroup/unified"]
            elif controller in controllers.split(","):
                mounts = [f"sys/fs/cgroup/{controller}", f"sys/fs/cgroup/{controllers}"]
            else:
                continue
            group = PurePosixPath(name.lstrip("/"))
            yield from (root / mount / place for mount in mounts for place in (group, *group.parents))
