"""What a message from another machine, or its silence, does to the processes of this one."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pretraining.system.launchers import free_port
from pretraining.training.stopping.machine_links import MachineEnd, receive
from tests.conftest import PROJECT_DIR, Done
from tests.programs.launching import SEARCH_PATH, run_forked

DRIVER = PROJECT_DIR / "tests/multinode/linked_machine.py"


# Of one of two processes, each as if it were alone on a machine.
LINKED = """
import os, signal, time
from pretraining.system.launchers import process_rank
from pretraining.system.machines.meeting import close_meeting, open_meeting
from pretraining.training.stopping import machine_links
from pretraining.training.stopping.orphan_guard import OrphanGuard
from pretraining.training.stopping.request import StopRequest
machine_links.machine_identity = lambda: f"machine {process_rank()}"
open_meeting()
request = StopRequest()
machine_links.link_machines(request, OrphanGuard(request), seconds=60)
close_meeting()
if process_rank() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""


def told(rank: int, end: MachineEnd | None, phase: str = "TRAINING", message: str = "") -> Done:
    line = "" if end is None else json.dumps(asdict(end))
    environment = {"RANK": str(rank), "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "2"}
    return run_forked(sys.executable, DRIVER, line, phase, message, env=environment)


def test_machines_are_linked_before_there_is_a_process_group(tmp_path: Path) -> None:
    run = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    (tmp_path / "linked.py").write_text(LINKED)
    words = [sys.executable, tmp_path / "linked.py"]
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": SEARCH_PATH, **run, "RANK": "1"}) as second:
        first = run_forked(*words, env={**run, "RANK": "0"})
    assert (first.returncode, second.returncode) == (1, -signal.SIGKILL), first.output
    assert "of this run is gone (connection closed), stopping; rerun to resume" in first.stderr


def test_a_connection_that_breaks_ends_all_machines_with_one_line() -> None:
    done = told(0, None)
    message = "node-c of this run is gone (connection closed), stopping; rerun to resume"
    assert done.returncode == 1
    assert done.stderr == f"error: {message}\n"
    assert "peers 1" in done.stdout
    (sent,) = [line for line in done.stdout.splitlines() if line.startswith("sent 2 ")]
    assert json.loads(sent.removeprefix("sent 2 ")) == {"rank": 4, "code": 1, "message": message, "answers": True}


@pytest.mark.parametrize("rank", [0, 2])
def test_a_reported_crash_ends_this_machine_with_its_message(rank: int) -> None:
    done = told(rank, MachineEnd(4 if rank == 0 else 0, 1, "node-c: process 5 of this run died"))
    assert (done.returncode, done.stderr) == (1, "error: node-c: process 5 of this run died\n")


# Others are long: each is none of a crash, as 75 is.
@pytest.mark.parametrize("code", [*(pytest.param(code, marks=pytest.mark.long) for code in (0, 3)), 75])
def test_an_agreed_end_is_no_death(code: int) -> None:
    done = told(0, MachineEnd(4, code, "node-c: the end"), "LEAVING", "own end")
    assert (done.returncode, done.stderr) == (9, "error: own end\n")
    assert "alive" in done.stdout
    assert '"message": "node-a: own end"' in done.stdout, "says goodbye itself"


@pytest.mark.parametrize(("code", "phase", "own"), [(75, "BEFORE", 75), (0, "TRAINING", 1), (2, "LEAVING", 2)])
def test_an_end_that_is_not_agreed_ends_this_machine_a_little_later(code: int, phase: str, own: int) -> None:
    """In between this process may find the same by itself, e.g. a user error."""
    done = told(0, MachineEnd(4, code, "node-c: the end"), phase)
    assert (done.returncode, done.stderr) == (own, "error: node-c: the end\n")


def test_a_process_says_with_which_code_it_ends() -> None:
    done = told(0, MachineEnd(4, 0, ""), "LEAVING")
    assert '"code": 9, "message": "node-a of this run is gone (process 0 ended with exit code 9)' in done.stdout


class Broken:
    """A connection that fails when it is read."""

    def __init__(self, error: OSError) -> None:
        self._error = error

    def makefile(self, _mode: str) -> Any:
        raise self._error


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ECONNRESET])
def test_what_broke_a_connection_is_said(number: int) -> None:
    end = receive(Broken(OSError(number, os.strerror(number))), 2, "node-b")  # type: ignore[arg-type]
    reason = "connection closed" if number == errno.ECONNRESET else "no answer for 30 s"
    assert end.message == f"node-b of this run is gone ({reason}), stopping; rerun to resume"
    assert end.answers == (number == errno.ECONNRESET)


@pytest.mark.parametrize("sent", [b"not json\n", b"[1]\n", b'{"rank": 2}\n'])
def test_garbage_is_an_end_too(sent: bytes) -> None:
    here, there = socket.socketpair()
    there.sendall(sent)
    assert receive(here, 2, "node-b").code == 1
