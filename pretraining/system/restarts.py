"""--restarts: a run whose workers crash is brought up again on the same machine, without its user and its launcher.

Each process that a launcher started becomes a `Supervisor` with a worker; a thread of the first one coordinates them.
When a worker ends badly, all are ended and started again after a pause, with another port to meet at.
"""

import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Client, Connection, Listener, wait
from pathlib import Path
from threading import Thread

from pretraining.cli.program import exit_process
from pretraining.errors import UserError
from pretraining.system.launchers import (
    has_launcher,
    launcher_identity,
    meeting_dir,
    num_local_processes,
    num_processes,
    process_age_seconds,
    process_rank,
)
from pretraining.system.private_dirs import private_dir
from pretraining.system.supervisor import (
    POLL_SECONDS,
    End,
    Ended,
    Leave,
    Start,
    Supervisor,
    die_with_supervisor,
    is_supervised,
    receive_message,
    send_message,
)

logger = logging.getLogger(__name__)

RESTART_VARIABLE = "PRETRAINING_RESTART"
MEET_SECONDS = 60.0  # processes of one launcher start within seconds
STOP_SECONDS = 30.0  # ranks that are asked to stop do so at the same step
LONGEST_PAUSE_SECONDS = 60


def boot_seconds() -> float:
    """Seconds since this machine was booted: a clock that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


CLOCK_OFFSET = time.time() - boot_seconds()  # at the start: the wall clock can be set while a run trains


@dataclass(frozen=True)
class Restart:
    """Why this attempt is made."""

    number: int
    limit: int
    reason: str
    started_at: float  # of the first attempt, in seconds since boot
    clock_offset: float = CLOCK_OFFSET  # of the first attempt


def this_restart() -> Restart | None:
    """The restart that brought this process up, None in the first attempt."""
    told = os.environ.get(RESTART_VARIABLE)
    return None if told is None else Restart(**json.loads(told))


def run_age_seconds() -> float:
    """How long ago this run began: its first attempt, when it was brought up again."""
    restart = this_restart()
    return process_age_seconds() if restart is None else boot_seconds() - restart.started_at


def run_started_at() -> float:
    """When this run began, for comparison with times of files: by the wall clock as it was then or is now.

    The earlier of both, so that no file of a run is taken for one of before, however the clock was set meanwhile.
    """
    restart, now = this_restart(), boot_seconds()
    offset = CLOCK_OFFSET if restart is None else restart.clock_offset
    return now - run_age_seconds() + min(offset, time.time() - now)


def supervise(limit: int) -> None:
    """Turn this process into the supervisor of a worker, and end with its exit code; in a worker, return.

    Raises:
        UserError: when the run has processes on other machines, or its processes do not find each other.
    """
    if is_supervised():
        die_with_supervisor()
        return
    if num_local_processes() != num_processes():
        raise UserError(
            f"--restarts {limit}: {num_local_processes()} of the {num_processes()} processes are on this machine, and "
            "only a run on one machine can be brought up again; leave the flag out"
        )
    exit_code = Supervisor(_meet(limit)).run()
    if has_launcher() and process_rank() == 0:
        with suppress(UserError):
            shutil.rmtree(meeting_dir(), ignore_errors=True)  # which workers left for those after them
    exit_process(exit_code)


def _meet(limit: int) -> Connection:
    """This process's connection to the coordinator, which the first one starts."""
    try:
        connection = _start_coordinator(limit) if process_rank() == 0 else _find_coordinator()
        has_met = connection is not None and connection.poll(MEET_SECONDS)
    except OSError as error:
        raise UserError(f"--restarts: the processes cannot meet ({error}); set TMPDIR to another folder") from None
    if connection is None or not has_met:
        raise UserError(
            "--restarts: the processes of this run do not find each other; have the launcher start pretrain.py "
            "itself, without a script in between"
        )
    return connection


def socket_path() -> Path:
    """Where the coordinator listens: in a folder that no other user can open."""
    return private_dir(f"restarts-{launcher_identity()}") / "socket"


def _start_coordinator(limit: int) -> Connection:
    ours, theirs = Pipe()
    listener = None
    if num_processes() > 1:
        listener = Listener(str(socket_path()), backlog=num_processes())
    Thread(target=_coordinate, args=(theirs, listener, limit), daemon=True).start()
    return ours


def _find_coordinator() -> Connection | None:
    path, deadline = socket_path(), time.monotonic() + MEET_SECONDS
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            return Client(str(path))
        time.sleep(POLL_SECONDS)
    return None


def _coordinate(first: Connection, listener: Listener | None, limit: int) -> None:
    members = [first]
    if listener is not None:
        folder = Path(str(listener.address)).parent
        members += [listener.accept() for _ in range(num_processes() - 1)]
        listener.close()
        folder.rmdir()
    try:
        exit_code = Coordinator(members, limit).run()
    except (EOFError, OSError):
        logger.error("--restarts: a process that watches a worker was killed, so the run ends")
        exit_code = 1
    for member in reversed(members):  # this process last: it ends at that
        with suppress(OSError):
            send_message(member, Leave(exit_code))


class Coordinator:
    """Decides for all supervisors, its `members`, when workers start and end."""

    def __init__(self, members: Sequence[Connection], limit: int) -> None:
        self._members = members
        self._limit = limit
        self._started_at = boot_seconds()

    def run(self) -> int:
        """Start workers until all of them end well, or no restart is left or wanted; the exit code."""
        failure = self._attempt({})
        for number in range(1, self._limit + 1):
            if failure is None or failure.is_final:
                break
            reason = f"{failure.said} at {time.strftime('%Y-%m-%d %H:%M:%S')}"
            restart = Restart(number, self._limit, reason, self._started_at, CLOCK_OFFSET)
            pause = min(2 ** (number - 1), LONGEST_PAUSE_SECONDS)
            logger.warning("%s; restart %d of %d in %d s", reason, number, self._limit, pause)
            asked_to_stop = _take_ended(list(self._members), timeout_seconds=pause)
            failure = (
                asked_to_stop[0] if asked_to_stop else self._attempt({RESTART_VARIABLE: json.dumps(vars(restart))})
            )
        if failure is None:
            return 0
        if not failure.is_final:
            logger.error("%s; --restarts %d: none is left", failure.said, self._limit)
        return failure.exit_code

    def _attempt(self, environment: dict[str, str]) -> Ended | None:
        """Have all workers started, and all of them ended once one ended badly; the first that did so."""
        port = str(_free_port())
        for member in self._members:
            send_message(member, Start({**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}))
        pending = list(self._members)
        failures: list[Ended] = []
        while pending and not failures:
            failures = [ended for ended in _take_ended(pending) if ended.code]
        deadline = time.monotonic() + STOP_SECONDS
        while pending and failures[0].is_stop and time.monotonic() < deadline:
            _take_ended(pending, timeout_seconds=deadline - time.monotonic())
        for member in pending:
            send_message(member, End())
        while pending:
            _take_ended(pending)
        return failures[0] if failures else None


def _take_ended(pending: list[Connection], *, timeout_seconds: float | None = None) -> list[Ended]:
    """Take out of `pending` those whose worker has ended, and say how; wait for the first of them."""
    found = wait(pending, timeout_seconds)
    ready = [member for member in pending if member in found]
    for member in ready:
        pending.remove(member)
    return [receive_message(member) for member in ready]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
