from pathlib import Path

import pytest

from pretraining.system.host import available_host_bytes

GROUPS = {
    "version 2": ("0::/job/step", "sys/fs/cgroup/job", "memory.max", "memory.current", ""),
    "version 1": (
        "9:cpu:/\n4:memory:/job/step",
        "sys/fs/cgroup/memory/job",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_",
    ),
    "version 1 in a container": (
        "4:memory:/docker/0123",
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_",
    ),
}


def test_available_memory_is_read() -> None:
    assert 10**8 < available_host_bytes() < 10**14


@pytest.mark.parametrize("name", GROUPS)
def test_files_in_the_cache_of_a_control_group_are_room(name: str, tmp_path: Path) -> None:
    own, place, limit, used, prefix = GROUPS[name]
    group = tmp_path / place
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(own + "\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 4000 kB\nMemAvailable: 2000 kB\n")
    (group / limit).write_text("1000000\n")
    (group / used).write_text("900000\n")
    (group / "memory.stat").write_text(f"rss 200000\n{prefix}inactive_file 100000\n{prefix}active_file 600000\n")
    assert available_host_bytes(tmp_path) == 800_000
    (group / limit).write_text("max\n")
    assert available_host_bytes(tmp_path) == 2_048_000
