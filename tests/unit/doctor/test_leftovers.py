"""What earlier runs left behind: a lost process, and a lock that the suggested command removes."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from pretraining.system.processes import stat_words
from tests.conftest import run
from tests.fakes.doctoring import diagnose_some, find

pytestmark = pytest.mark.launch


def test_a_process_without_a_launcher_is_found(tmp_path: Path) -> None:
    program = tmp_path / "pretrain.py"
    program.write_text("import time\ntime.sleep(600)\n")
    started = run("sh", "-c", 'setsid "$@" >/dev/null 2>&1 & echo $!', "sh", sys.executable, program)
    pid = int(started.stdout)
    try:
        while bytes(program) not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:2]:  # a shell, and setsid
            time.sleep(0.02)
        if stat_words(pid)[1] != "1":
            pytest.skip("another process than the first takes in those that lost their parent")
        found = find(diagnose_some("stale processes", "--json"), "stale processes", "warning")
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
