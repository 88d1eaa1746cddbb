from pathlib import Path

import pytest

from pretraining.machine import memory
from pretraining.machine.memory import available_host_bytes


def test_available_memory_is_read() -> None:
    assert 10**8 < available_host_bytes() < 10**14


def test_files_in_the_cache_of_a_control_group_are_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    group = tmp_path / "job"
    group.mkdir()
    own = tmp_path / "own"
    own.write_text("0::/job\n")
    texts = {"memory.max": "1000000", "memory.current": "900000"}
    texts["memory.stat"] = "anon 200000\ninactive_file 100000\nactive_file 600000\n"
    for name, text in texts.items():
        (group / name).write_text(text)
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_CONTROL_GROUP", own)
    assert available_host_bytes() == 800_000
