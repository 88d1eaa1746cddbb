"""Finding the processes of `deepspeed --hostfile` on this machine; tests/multinode has them for real."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pretraining.system.launchers import LAUNCHER_VARIABLE
from pretraining.system.processes import ProcessHandle, command_words
from pretraining.training.stopping.remote_launch import end_connections_to, is_below_sshd, pdsh_runner
from tests.conftest import PROJECT_DIR, run

WORLD = "--world_info=" + base64.urlsafe_b64encode(json.dumps({"node-a": [0, 1], "node-b": [0, 1]}).encode()).decode()
WORDS = [WORLD, "--node_rank=1", "--master_port=29500"]


class Launched:
    """Processes with the names and command lines of pdsh, its two ssh, and the launcher; all of them sleep."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.pdsh = self._start("pdsh", "-w", "node-a,node-b", *WORDS)
        self.ssh = {host: self._start("ssh", host, *WORDS) for host in ("node-a", "node-b")}
        self.other = self._start("ssh", "node-b", WORLD, "--master_port=29501")
        self.launcher = self._start("python3", *WORDS)
        while not command_words(self.launcher.pid)[1:]:  # which Linux shows a moment after the start
            time.sleep(0.01)

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        program = self._folder / name
        if not program.exists():
            program.symlink_to("/bin/sh")
        process = subprocess.Popen([str(program), "-c", "read line", *words], stdin=subprocess.PIPE)
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        return process


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    with ExitStack() as stack:
        yield Launched(tmp_path, stack)


def test_the_command_is_the_parent_of_its_pdsh(launched: Launched) -> None:
    assert pdsh_runner(launched.launcher.pid) == ProcessHandle.of(os.getpid())
    launched.pdsh.kill()
    launched.pdsh.wait()
    assert pdsh_runner(launched.launcher.pid) is None


def test_only_the_connection_to_the_lost_machine_is_ended(launched: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(ProcessHandle.of(launched.launcher.pid)))
    end_connections_to(2)
    assert launched.ssh["node-b"].wait() == -15
    assert [process.poll() for process in (launched.ssh["node-a"], launched.other, launched.pdsh)] == [None] * 3


def test_no_launcher_of_deepspeed_no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(ProcessHandle.of(os.getpid())))
    end_connections_to(2)
    assert pdsh_runner(os.getpid()) is None
    assert not is_below_sshd(1)


@pytest.mark.parametrize(("closes", "found"), [("", "False"), ("reader.close(); ", "True")])
def test_a_pipe_without_a_reader_is_noticed(closes: str, found: str) -> None:
    script = "import os; from pretraining.training.stopping.remote_launch import stderr_is_closed\n"
    script += f"end, writer = os.pipe(); reader = os.fdopen(end); os.dup2(writer, 2); {closes}print(stderr_is_closed())"
    done = run(sys.executable, "-c", script, cwd=PROJECT_DIR)
    assert done.stdout.split() == [found], done.output
