"""One process of a run with --restarts: it starts the real work as its child, watches it, and ends it when told.

It imports no torch, so that it is small (18 MB), and decides nothing: what a failure leads to is decided in one place
for all processes, `restarts`. A signal is passed on to the worker, which has a process group of its own, so that a
terminal's Ctrl-C comes once, and what a dead worker leaves behind (those that load its data) can be ended with it.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from threading import Thread
from types import FrameType
from typing import Any, NamedTuple

from pretraining.cli.program import INTERRUPTED_EXIT_CODE, STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE, exit_process
from pretraining.system.launchers import (
    LAUNCHER_VARIABLE,
    has_launcher,
    launcher_identity,
    local_rank,
    num_local_processes,
    num_processes,
    process_rank,
)

SUPERVISOR_VARIABLE = "PRETRAINING_SUPERVISOR"
STOP_CODES = (STOPPED_EXIT_CODE, INTERRUPTED_EXIT_CODE, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
POLL_SECONDS = 0.5
END_SECONDS = 10.0  # from SIGTERM to SIGKILL: a checkpoint that is nearly written may be finished
PR_SET_PDEATHSIG = 1


class Start(NamedTuple):
    """Start a worker, with this in its environment besides."""

    environment: Mapping[str, str]


class End(NamedTuple):
    """End the worker, if it runs still."""


class Leave(NamedTuple):
    """End the worker if it runs still, and this process with it."""

    exit_code: int


class Ended(NamedTuple):
    """The answer to each `Start`, some time later: how the worker ended, and whether a signal had asked it to."""

    rank: int
    code: int
    was_asked: bool

    @property
    def is_stop(self) -> bool:
        """Whether somebody wanted that."""
        return self.was_asked or self.code in STOP_CODES

    @property
    def is_final(self) -> bool:
        """Whether starting again is not wanted, or would end alike."""
        return self.is_stop or self.code == USER_ERROR_EXIT_CODE

    @property
    def said(self) -> str:
        """As a person says it."""
        by_signal = self.code < 0
        how = f"was killed by {signal.Signals(-self.code).name}" if by_signal else f"ended with exit code {self.code}"
        return f"rank {self.rank} {how}"

    @property
    def exit_code(self) -> int:
        """As shells say it."""
        return self.code if self.code >= 0 else 128 - self.code


MESSAGES = {kind.__name__: kind for kind in (Start, End, Leave, Ended)}


def send_message(connection: Connection, message: Start | End | Leave | Ended) -> None:
    """Send it as JSON: what `Connection.send` sends is unpickled at the other end."""
    connection.send_bytes(json.dumps([type(message).__name__, *message]).encode())


def receive_message(connection: Connection) -> Any:
    """The next message; waits for it."""
    name, *values = json.loads(connection.recv_bytes())
    return MESSAGES[name](*values)


class Supervisor:
    """Does what the coordinator at the other end of a connection says."""

    def __init__(self, coordinator: Connection) -> None:
        self._coordinator = coordinator
        self._launcher = os.getppid()
        self._worker: subprocess.Popen | None = None
        self._watcher: Thread | None = None
        self._asked_by: int | None = None
        self._has_told = False

    def run(self) -> int:
        """Follow orders until the last one; the exit code."""
        for number in PASSED_ON:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._pass_on)
        while True:
            try:
                order = self._next_order()
            except (EOFError, OSError):  # the first rank's supervisor was killed
                order = Leave(1)
            if isinstance(order, Start):
                self._start(order.environment)
            else:
                self._end()
            if isinstance(order, Leave):
                return order.exit_code

    def _next_order(self) -> Start | End | Leave:
        while not self._coordinator.poll(POLL_SECONDS):
            if has_launcher() and os.getppid() != self._launcher and self._asked_by is None:
                self._pass_on(signal.SIGTERM, None)
            if self._asked_by is not None and self._worker is None and not self._has_told:
                code = INTERRUPTED_EXIT_CODE if self._asked_by == signal.SIGINT else STOPPED_EXIT_CODE
                send_message(self._coordinator, Ended(process_rank(), code, was_asked=True))
                self._has_told = True
        return receive_message(self._coordinator)

    def _start(self, environment: Mapping[str, str]) -> None:
        if self._asked_by is not None:  # the coordinator is told instead
            return
        self._worker = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={**os.environ, **worker_environment(), **environment},
            process_group=0,
        )
        self._watcher = Thread(target=self._watch, args=(self._worker,), daemon=True)
        self._watcher.start()
        if self._asked_by is not None:  # meanwhile
            _send(self._worker.pid, self._asked_by)

    def _watch(self, worker: subprocess.Popen) -> None:
        os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # its number is not given to another process yet
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        ended = Ended(process_rank(), worker.wait(), was_asked=self._asked_by is not None)
        self._has_told = ended.was_asked
        self._worker = None
        with suppress(OSError):
            send_message(self._coordinator, ended)

    def _end(self) -> None:
        worker, watcher = self._worker, self._watcher
        if worker is None or watcher is None:
            return
        _send(worker.pid, signal.SIGTERM)
        watcher.join(END_SECONDS)
        if watcher.is_alive():
            _send(worker.pid, signal.SIGKILL)
            watcher.join()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._asked_by = number
        if self._worker is not None:
            _send(self._worker.pid, number)


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def worker_environment() -> dict[str, str]:
    """What a launcher tells a process; the worker is then no matter of MPI or of torchrun's own store any more."""
    told = {SUPERVISOR_VARIABLE: str(os.getpid())}
    if has_launcher():
        told |= {"RANK": str(process_rank()), "LOCAL_RANK": str(local_rank())}
        told |= {"WORLD_SIZE": str(num_processes()), "LOCAL_WORLD_SIZE": str(num_local_processes())}
        told |= {LAUNCHER_VARIABLE: launcher_identity(), "TORCHELASTIC_USE_AGENT_STORE": "False"}
    return told


def is_supervised() -> bool:
    """Whether this process is a worker."""
    return SUPERVISOR_VARIABLE in os.environ


def die_with_supervisor() -> None:
    """Have this worker killed when its supervisor is gone, however that ended."""
    supervisor = int(os.environ.pop(SUPERVISOR_VARIABLE))
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it was gone before
        exit_process(1)
