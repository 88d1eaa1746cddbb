"""How much host memory this machine has to give."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MEMORY_INFO = Path("/proc/meminfo")
CONTROL_GROUPS, OWN_CONTROL_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def available_host_bytes() -> int:
    """Memory that new work can take without swapping (MemAvailable), and within the limits of container or job."""
    for line in MEMORY_INFO.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return min([int(line.split()[1]) * 1024, *_bytes_within_limits()])
    raise RuntimeError(f"{MEMORY_INFO} has no MemAvailable line")


def _bytes_within_limits() -> Iterator[int]:
    """What each control group of this process may still take (cgroup v2, as containers and Slurm set them)."""
    with suppress(OSError):
        own = OWN_CONTROL_GROUP.read_text(encoding="ascii").rpartition("::")[2].strip().strip("/")
        for group in (CONTROL_GROUPS / own, *(CONTROL_GROUPS / own).parents):
            if group.is_relative_to(CONTROL_GROUPS) and (group / "memory.max").is_file():
                limit = (group / "memory.max").read_text(encoding="ascii").strip()
                if limit != "max":
                    used = int((group / "memory.current").read_text(encoding="ascii"))
                    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                    # Cached files are dropped first, those that were read twice as well: blocks, and checkpoints.
                    yield max(0, int(limit) - used + int(stat["inactive_file"]) + int(stat["active_file"]))
