"""Where the processes of several machines meet before anything is loaded, and from where they leave together.

Without it, a mistake that one machine finds alone (its blocks are missing) would leave the others waiting for it in the
process group until --ddp_timeout. They meet in a store of torch at MASTER_ADDR, which the process group uses later.
Only JSON is exchanged. A run on one machine has no meeting, and nothing here does anything.
"""

import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from pretraining.errors import CRASH_EXIT_CODE, USER_ERROR_EXIT_CODE, UserError
from pretraining.system.launchers import (
    local_rank,
    num_local_processes,
    num_processes,
    process_rank,
)
from pretraining.system.machines.network import is_local, use_interface
from pretraining.system.machines.presence import SILENT_SECONDS, Heartbeat, Listener
from pretraining.system.machines.rendezvous import find_store
from pretraining.system.supervision import absence_exit_code

MEETING_SECONDS = 120.0  # between the first process and the last; imports from a slow network disk take a minute
LEAVE_SECONDS = 10.0  # for all to see a problem before the store is gone
POLL_SECONDS = 0.1
PROBLEM, LEFT, HOST = "problem", "left", "host"  # keys
MAX_NAMED = 8  # missing processes
LOOK_THERE = "the output of that machine has the reason, unless it is down or a firewall is between"


class SharedError(UserError):
    """Problems that all processes of the run know of, so that each of them ends by itself."""


@dataclass(frozen=True)
class Meeting:
    """A store that all processes reach, and this process in it."""

    store: Any
    place: str
    rank: int
    size: int
    host: str
    heartbeat: Heartbeat

    def gather(self, topic: str, value: Any, *, seconds: float) -> list[Any]:
        """The values of all processes by rank, as JSON keeps them.

        Raises:
            SharedError: when a process has a problem instead, or does not come in time.
        """
        keys, count = [f"{topic}/{rank}" for rank in range(self.size)], f"{topic}/count"
        with self._reaching_store():
            self.store.set(keys[self.rank], json.dumps(value))
            self.store.add(count, 1)
            deadline, listener = time.monotonic() + seconds, Listener(self.store)
            while self.store.add(count, 0) < self.size:
                problem, exit_code = None, CRASH_EXIT_CODE
                if time.monotonic() > deadline:
                    problem, exit_code = self._describe_missing(self._missing(keys), seconds), absence_exit_code()
                elif self.rank == 0 and listener.is_due():  # one is enough, and asks for each of the others
                    problem = self._describe_silent(listener.silent(self._missing(keys)))
                if problem is not None:
                    self._post([f"{self.host}: {problem}"], exit_code)
                if self.store.check([PROBLEM]):
                    self._leave()
                time.sleep(POLL_SECONDS)
            return [json.loads(text) for text in self.store.multi_get(keys)]

    def _missing(self, keys: Sequence[str]) -> list[int]:
        """The ranks whose key is not there yet."""
        return [rank for rank, key in enumerate(keys) if not self.store.check([key])]

    def leave_with(self, problems: Iterable[str], exit_code: int) -> NoReturn:
        """Have all processes leave with these problems, or with those of a process that was faster.

        Raises:
            SharedError: always.
        """
        with self._reaching_store():
            self._post(problems, exit_code)
            self._leave()

    def _post(self, problems: Iterable[str], exit_code: int) -> None:
        self.store.compare_set(PROBLEM, "", json.dumps({"problems": list(problems), "exit_code": exit_code}))

    def _leave(self) -> NoReturn:
        """Raise the first problem when all have seen it: the store ends with the first process or its launcher."""
        first = json.loads(self.store.get(PROBLEM))
        self.heartbeat.stop()
        deadline = time.monotonic() + LEAVE_SECONDS
        with suppress(RuntimeError):  # of torch: the first process saw that all had, and has ended
            self.store.add(LEFT, 1)
            while self.store.add(LEFT, 0) < self.size and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        if self.rank == 0:
            time.sleep(5 * POLL_SECONDS)  # else torch writes stack traces in those that are still asking
        raise SharedError(*first["problems"], exit_code=first["exit_code"])

    def _describe_missing(self, missing: Sequence[int], seconds: float) -> str:
        here = {host for rank, host in self._known_hosts().items() if rank not in missing}
        return (
            f"{len(missing)} of {self.size} processes did not come to {self.place} within {seconds:.0f} s "
            f"({self._named(missing)}; those of {', '.join(sorted(here))} did); {LOOK_THERE}"
        )

    def _describe_silent(self, ranks: Sequence[int]) -> str | None:
        return f"{self._named(ranks)}: no sign of life for {SILENT_SECONDS:.0f} s; {LOOK_THERE}" if ranks else None

    def _named(self, ranks: Sequence[int]) -> str:
        """Processes by rank, with their hosts as far as these are known."""
        hosts = self._known_hosts()
        named = ", ".join(f"process {rank} on {hosts.get(rank, 'an unknown host')}" for rank in ranks[:MAX_NAMED])
        return named + (", ..." if len(ranks) > MAX_NAMED else "")

    def _known_hosts(self) -> dict[int, str]:
        """The hosts of the processes that came to the meeting, and of those beside them, by rank."""
        came = [rank for rank in range(self.size) if self.store.check([f"{HOST}/{rank}"])]
        texts = self.store.multi_get([f"{HOST}/{rank}" for rank in came])
        hosts = {rank: json.loads(text)["host"] for rank, text in zip(came, texts, strict=True)}
        local = num_local_processes()
        of_machines = {rank // local: host for rank, host in hosts.items()}
        beside = {rank: of_machines[rank // local] for rank in range(self.size) if rank // local in of_machines}
        return beside | hosts

    @contextmanager
    def _reaching_store(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:  # of torch: the connection broke
            raise SharedError(
                f"{self.host}: {self.place} does not answer any more, so process 0 or its launcher has ended; its "
                "output has the reason",
                exit_code=CRASH_EXIT_CODE,  # after an error that it reports, process 0 waits for the others
            ) from None


_meeting: Meeting | None = None  # while it is open
_kept_store: Any = None  # of a meeting that was closed: the process group uses the same server


def open_meeting() -> None:
    """Meet the processes of all machines.

    Raises:
        UserError: when this process does not reach the others, or not all of them come within two minutes.
    """
    global _meeting
    place = find_store(seconds=MEETING_SECONDS)
    host, size, heartbeat = socket.gethostname(), num_processes(), Heartbeat(place.store, process_rank())
    _meeting = Meeting(place.store, str(place), process_rank(), size, host, heartbeat)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # for DeepSpeed, which reads no others
    values = map(str, (process_rank(), local_rank(), size, place.address, place.port))
    os.environ.update(zip(names, values, strict=True))

    heartbeat.start()
    found = gather(HOST, {"host": host, "first": place.other_end}, seconds=MEETING_SECONDS)
    # The first machine may reach itself by the loopback interface; the others know how they reach it.
    seen = next((each["first"] for each in found if not is_local(each["first"])), None)
    use_interface(seen if is_local(place.own_end) else place.own_end)


def gather(topic: str, value: Any, *, seconds: float) -> list[Any]:
    """The values of all processes by rank, before the process group is there; on one machine only that of this one.

    Raises:
        SharedError: when a process has a problem instead, or does not come in time.
    """
    if _meeting is None:
        return [value]
    return _meeting.gather(topic, value, seconds=seconds)


def leave(problems: Iterable[str]) -> NoReturn:
    """Leave with problems that every process has found alike, each with its host.

    Raises:
        UserError: always.
    """
    if _meeting is None:
        raise UserError(*problems)
    _meeting.leave_with(problems, USER_ERROR_EXIT_CODE)


def close_meeting() -> None:
    """Let errors be those of this process again: from here on the machines are linked."""
    global _meeting, _kept_store
    if _meeting is not None:
        _meeting.heartbeat.stop()
        _kept_store, _meeting = _meeting.store, None


def shared(error: UserError) -> UserError:
    """Have the processes of all machines leave with an error of this one; what each of them reports."""
    if _meeting is not None and not isinstance(error, SharedError):
        try:
            _meeting.leave_with([f"{_meeting.host}: {problem}" for problem in error.problems], error.exit_code)
        except SharedError as first:
            return first
    return error


def share_crash(error: BaseException) -> None:
    """Have the processes of all machines leave because this one crashed."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    shared(UserError(f"process {process_rank()} crashed ({reason}); its output has more", exit_code=CRASH_EXIT_CODE))
