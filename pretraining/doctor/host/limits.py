"""Limits that the system sets for this process: ulimits and control groups."""

import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.doctor.finding import Finding, gigabytes, ok, warning
from pretraining.system.cores import group_folders

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
INFINIBAND = Path("/dev/infiniband")
LEAST_FREE_PROCESSES = 1024  # threads count too: a process of a run has dozens
UNLIMITED = resource.RLIM_INFINITY


@dataclass(frozen=True)
class Least:
    """A ulimit that should not be smaller."""

    flag: str
    resource: int
    least: int
    why: str


LIMITS = {
    "open files": Least("n", resource.RLIMIT_NOFILE, 1024, "shards, sockets and what data workers share"),
    "processes": Least("u", resource.RLIMIT_NPROC, 4096, "threads count too"),
}


def limits(_: Sequence[Path]) -> Iterator[Finding]:
    """Open files, processes, locked memory and core files."""
    found = {name: resource.getrlimit(limit.resource)[0] for name, limit in LIMITS.items()}
    small = {name for name, value in found.items() if value != UNLIMITED and value < LIMITS[name].least}
    for name in sorted(small):
        limit = LIMITS[name]
        figure = f"{found[name]}, {limit.least} are wanted: {limit.why}"
        yield warning(name, figure, f"ulimit -{limit.flag} {_reachable(limit)}", limit=found[name])
    locked, core = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], resource.getrlimit(resource.RLIMIT_CORE)[0]
    if locked != UNLIMITED and INFINIBAND.exists():
        figure = f"{gigabytes(locked)}: InfiniBand registers more than that"
        yield warning("locked memory", figure, "docker run --ulimit memlock=-1 IMAGE  # or ulimit -l unlimited")
    if core != 0 and not CORE_PATTERN.read_text().startswith("|"):
        size = "any size" if core == UNLIMITED else gigabytes(core)
        yield warning("core files", f"{size}: a crash writes a process's memory to the disk", "ulimit -c 0")
    if not small:
        said = ", ".join(f"{name} {_shown(value)}" for name, value in found.items())
        memory = "unlimited" if locked == UNLIMITED else gigabytes(locked)
        yield ok("limits", f"{said}, locked memory {memory}", **found, memlock=locked)


def _reachable(limit: Least) -> int:
    """The least that helps, or what the hard limit allows of it."""
    hard = resource.getrlimit(limit.resource)[1]
    wanted = limit.least * 16
    return wanted if hard == UNLIMITED else min(wanted, hard)


def _shown(value: int) -> str:
    return "unlimited" if value == UNLIMITED else f"{value:,}"


def control_group(_: Sequence[Path]) -> Iterator[Finding]:
    """Memory and number of processes that container or job allow."""
    memory = _group_limit("memory", "memory.max", "memory.limit_in_bytes")
    processes = _group_limit("pids", "pids.max", "pids.max")
    used = _group_limit("pids", "pids.current", "pids.current") or 0
    figures = {"memory_bytes": memory, "processes": processes, "processes_used": used}
    figure = f"memory {'unlimited' if memory is None else gigabytes(memory)}, "
    figure += f"processes {'unlimited' if processes is None else f'{processes:,}, {used:,} used'}"
    if processes is not None and processes - used < LEAST_FREE_PROCESSES:
        yield warning("control group", figure, "docker run --pids-limit=-1 IMAGE", **figures)
    else:
        yield ok("control group", figure, **figures)


def _group_limit(controller: str, new_name: str, old_name: str) -> int | None:
    """The smallest value on the way up from this process's group, in cgroup v2 or v1; None where there is none."""
    files = [folder / name for folder in group_folders(controller, Path("/")) for name in (new_name, old_name)]
    values = [file.read_text(encoding="ascii").strip() for file in files if file.is_file()]
    numbers = [int(value) for value in values if value.isdigit() and int(value) < 2**60]  # v1 says none so
    return min(numbers, default=None)
