"""The Linux control groups of this process, by which containers, batch systems and systemd limit it."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


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
