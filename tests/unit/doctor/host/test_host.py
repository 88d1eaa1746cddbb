"""Ills of a machine, planted: a small /dev/shm, a full disk, a closed folder, a lost process, a left lock."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretraining.doctor.host import host
from pretraining.doctor.host.host import judge_shared_memory
from pretraining.doctor.software import compilers
from pretraining.system.processes import stat_words
from tests.conftest import PROJECT_DIR, run
from tests.fakes.doctoring import diagnose_some, find, findings

pytestmark = pytest.mark.launch

MEGABYTE = 2**20


def test_a_containers_shared_memory_is_seen() -> None:
    """64 MB, as Docker gives them, in a name space of its own."""
    mount = "mount -t tmpfs -o size=64m none /dev/shm"
    if run("unshare", "-m", "sh", "-c", mount).returncode:
        pytest.skip("may not mount a file system here")
    within = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    done = diagnose_some("shared memory", "--json", launcher=within)
    found = find(done, "shared memory", "warning")
    assert found["figures"]["total_bytes"] == 64 * MEGABYTE
    assert "--ipc=host" in found["fix"]


def test_little_shared_memory_ends_runs_on_several_gpus_only() -> None:
    statuses = [
        judge_shared_memory(total * MEGABYTE, free * MEGABYTE, num_gpus=num_gpus).status
        for total, free, num_gpus in [(64, 64, 8), (64, 64, 1), (64, 64, 0), (64_000, 10, 8), (64_000, 60_000, 8)]
    ]
    assert statuses == ["failure", "warning", "warning", "warning", "ok"]


def test_a_small_disk_and_a_full_one(small_disk: Path) -> None:
    folders = ["--run_folder_or_disk", small_disk / "not/yet/there"]
    done = diagnose_some("disk", "--json", *folders)
    assert "3 MB of 3 MB free, tmpfs" in findings(done)[0]["figure"]
    assert [found["status"] for found in findings(done)] == ["warning", "warning", "failure"]  # room, in memory, full
    assert "No space left on device" in findings(done)[2]["figure"]
    assert list(small_disk.iterdir()) == []
    (small_disk / "full").write_bytes(bytes(3 * MEGABYTE))
    done = diagnose_some("disk", "--json", *folders, Path.cwd())
    assert "0 MB of 3 MB free" in findings(done)[0]["figure"]
    assert "No space left on device" in find(done, "disk speed", "failure")["figure"]
    assert done.returncode == 1
    assert [path.name for path in small_disk.iterdir()] == ["full"]
    assert {found["name"] for found in findings(done)[3:]} == {"disk", "disk speed"}


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    if subprocess.run(["chattr", "+i", closed], capture_output=True, check=False).returncode:
        pytest.skip("may not close a folder here")
    try:
        done = diagnose_some("disk", "--json", "--run_folder_or_disk", closed)
    finally:
        subprocess.run(["chattr", "-i", closed], check=True)
    assert "cannot be written (Operation not permitted)" in find(done, "disk speed", "failure")["figure"]


def test_a_process_without_a_launcher_is_found(tmp_path: Path) -> None:
    program = tmp_path / "pretrain.py"
    program.write_text("import time\ntime.sleep(600)\n")
    started = run("sh", "-c", 'setsid "$@" >/dev/null 2>&1 & echo $!', "sh", sys.executable, program)
    pid = int(started.stdout)
    try:
        while Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1] != bytes(program):  # a shell, and setsid
            time.sleep(0.02)
        if stat_words(pid)[1] != "1":
            pytest.skip("another process than the first takes in those that lost their parent")
        found = find(diagnose_some("left processes", "--json"), "left processes", "warning")
    finally:
        os.kill(pid, signal.SIGKILL)
    assert pid in found["figures"]["pids"]
    assert f"{pid} (pretrain.py" in found["figure"]


def test_a_lock_is_removed_by_the_fix(tmp_path: Path) -> None:
    lock = tmp_path / "it's/lock"
    lock.parent.mkdir()
    lock.touch()
    done = diagnose_some("extension locks", "--json", env={"TORCH_EXTENSIONS_DIR": str(tmp_path)})
    run("sh", "-c", find(done, "extension locks", "failure")["fix"])
    assert not lock.exists()
    assert diagnose_some("extension locks", env={"TORCH_EXTENSIONS_DIR": str(tmp_path)}).returncode == 0


@pytest.mark.parametrize(
    ("compiler", "gpus", "status"), [("c++", ["x"], "warning"), ("c++", [], "ok"), ("nvcc", ["x"], "ok")]
)
def test_what_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch, compiler: str, gpus: list[str], status: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == compiler else f"/usr/bin/{name}")
    monkeypatch.setattr(compilers, "_compiler_version", lambda _: "1.2")
    monkeypatch.setattr(compilers, "driver_gpus", lambda: gpus)
    (found,) = compilers.deepspeed_ops([])
    assert found.status == status
    assert ("--compile_layers is refused" in found.figure) == (status == "warning")


def test_a_clock_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    (found,) = host.clock([])
    assert found.status == "failure"
    assert found.figure.startswith("1970-01-01")


def test_an_old_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    for release, status in {"5.4.0-150-generic": "warning", "5.15.0": "ok", "6.1.0-rc1": "ok"}.items():
        monkeypatch.setattr("platform.release", lambda release=release: release)
        (found,) = host.kernel([])
        assert found.status == status


def test_nothing_is_left_in_the_checkout() -> None:
    assert not list(PROJECT_DIR.glob(".doctor-*"))
