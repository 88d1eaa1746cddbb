import os
import shutil
import subprocess
import sys
from pathlib import Path

from pretraining.system.processes import ProcessHandle, command_words, descendants
from tests.conftest import wait_until


def test_a_process_may_be_called_anything(tmp_path: Path) -> None:
    program = os.fsencode(tmp_path) + b"/\xff) R 1"
    shutil.copy(shutil.which("sleep"), program)
    with subprocess.Popen([program, "60"]) as process:
        while command_words(process.pid)[:1] != [os.fsdecode(program)]:  # between fork and exec
            assert process.poll() is None
        handle = ProcessHandle.of(process.pid)
        assert handle in descendants(os.getpid())
        assert handle.parent() == os.getpid()
        process.kill()
    assert not handle.is_alive()


def test_descendants_are_found_with_parents_first() -> None:
    script = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            found = [process.pid for process in descendants(os.getpid()) if process.pid in (parent.pid, child)]
            handle = ProcessHandle.of(child)
            assert found == [parent.pid, child]
            assert str(handle) == f"{child}-{handle.started}"
            assert handle.parent() == parent.pid
            wait_until(lambda: command_words(child)[:2] == ["sleep", "60"])  # it may just be starting its program
            assert handle.is_alive()
        finally:
            os.kill(child, 9)  # which the parent waits for
        parent.wait()
    assert not handle.is_alive()
    assert handle.parent() == 0
    assert command_words(child) == []
