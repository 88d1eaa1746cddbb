"""How much host memory this machine has to give."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pretraining.system.control_groups import group_folders

ROOT = Path("/")
# Of a control group: its limit, what it has taken, and the entries of memory.stat that count cached files.
VERSION_2 = ("memory.max", "memory.current", ("inactive_file", "active_file"))
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file"))


def available_host_bytes(root: Path | None = None) -> int:
    """Memory that new work can take without swapping (MemAvailable), and within the limits of container or job.

    `root` is where /proc and /sys are.
    """
    root = root or ROOT
    information = root / "proc/meminfo"
    for line in information.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return min([int(line.split()[1]) * 1024, *_bytes_within_limits(root)])
    raise RuntimeError(f"{information} has no MemAvailable line")


def _bytes_within_limits(root: Path) -> Iterator[int]:
    """What each control group of this process may still take, without those that have no limit."""
    for group in group_folders("memory", root):
        for limit_name, used_name, cached_names in (VERSION_2, VERSION_1):
            with suppress(OSError, ValueError, KeyError):  # of the other version, or "max"
                limit, used = (int((group / name).read_text(encoding="ascii")) for name in (limit_name, used_name))
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                # Cached files are dropped first, those that were read twice as well: blocks, and checkpoints.
                yield max(0, limit - used + sum(int(stat[name]) for name in cached_names))
