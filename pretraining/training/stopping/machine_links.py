"""Links between the machines of a run: when one dies or cannot be reached, the processes of all machines end.

The first process of each machine holds one TCP connection to rank 0. The kernels answer for the processes, so a long
save, or code that never releases Python's lock, is not taken for a death. Whoever ends in an orderly way sends its
exit code first; a connection that closes without one is a death.

Without links a run would wait. NCCL's watchdog aborts a collective only after --ddp_timeout, two hours by default. Over
Ethernet NCCL may see a closed connection earlier; after a power failure or on a cut cable it sees nothing. Gloo, which
computes on CPUs, sees a killed process at once and a cut cable never.
"""

import json
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from pretraining.cli.program import EXIT_LISTENERS, hard_exit
from pretraining.errors import (
    CRASH_EXIT_CODE,
    STOPPED_EXIT_CODE,
    TARGET_MISSED_EXIT_CODE,
    USER_ERROR_EXIT_CODE,
)
from pretraining.system.launchers import process_rank, spans_machines
from pretraining.system.machines.meeting import gather, leave
from pretraining.system.machines.network import listen
from pretraining.system.processes import ProcessHandle, machine_identity
from pretraining.training.stopping.link_sockets import ANSWER_SECONDS, TOKEN_BYTES, accept, connect
from pretraining.training.stopping.orphan_guard import OrphanGuard
from pretraining.training.stopping.remote_launch import end_connections_to
from pretraining.training.stopping.request import Phase, StopRequest

CONNECT_SECONDS = 60.0
MAX_LINE_BYTES = 4096
AGREED_CODES = (0, TARGET_MISSED_EXIT_CODE, STOPPED_EXIT_CODE)
COMMON_GRACE_SECONDS = 10.0  # for what all processes find, such as a user error: ranks above 0 report it 5 s later
LOST_PEER_SECONDS = 6.0  # in which the orphan guard or a link reports which process or machine is gone


@dataclass(frozen=True)
class MachineEnd:
    """That a machine of this run is gone: its first rank, the exit code, a line for the log, whether it answers."""

    rank: int
    code: int
    message: str
    answers: bool = True


class MachineLinks(threading.Thread):
    """Ends the processes of this machine when a connection to another one breaks, and sends the others the reason.

    `links` are the connections of this process by the rank at the other end, `hosts` the names of the machines by
    their first rank.
    """

    def __init__(
        self, links: dict[int, socket.socket], hosts: dict[int, str], request: StopRequest, guard: OrphanGuard
    ) -> None:
        super().__init__(name="machine links", daemon=True)
        self._links = dict(links)
        self._unsent = dict(links)
        self._hosts = hosts
        self._request = request
        self._guard = guard

    def run(self) -> None:
        """Wait for what the other machines send, and for broken connections."""
        while self._links:
            ranks = {link.fileno(): rank for rank, link in self._links.items()}
            poll = select.poll()
            for descriptor in ranks:
                poll.register(descriptor, select.POLLIN)
            for descriptor, _ in poll.poll():
                self._read(ranks[descriptor])

    def announce_exit(self, code: int, message: str) -> None:
        """Send the exit code of this process and the message in its log to the other machines; it ends next."""
        host, rank = self._hosts[process_rank()], process_rank()
        line = f"{host}: {message}" if message else _gone(host, f"process {rank} ended with exit code {code}")
        self._send(MachineEnd(rank, code, line))

    def close(self) -> None:
        """Close the connections in a forked child: those of its parent must break when that dies."""
        for link in self._links.values():
            link.close()

    def _read(self, rank: int) -> None:
        end = receive(self._links[rank], rank, self._hosts[rank])
        stops_at_once = end.code == STOPPED_EXIT_CODE and self._request.phase in (Phase.BEFORE, Phase.AFTER)
        if end.code in (*AGREED_CODES, USER_ERROR_EXIT_CODE) and not stops_at_once:
            self._links.pop(rank)  # the connection closes next
            threading.Thread(target=self._leave_later, args=(end,), daemon=True).start()
        else:
            self._leave(end)

    def _leave_later(self, end: MachineEnd) -> None:
        """Leave unless this process does so by itself."""
        time.sleep(COMMON_GRACE_SECONDS)
        if self._request.phase is not Phase.LEAVING or end.code not in AGREED_CODES:
            self._leave(replace(end, code=end.code or CRASH_EXIT_CODE))

    def _leave(self, end: MachineEnd) -> None:
        self._send(end)
        with suppress(OSError):
            os.write(2, f"error: {end.message}\n".encode())
        self._guard.end_peers(end.code)
        if not end.answers:
            end_connections_to(end.rank)
        hard_exit("", end.code)

    def _send(self, end: MachineEnd) -> None:
        """Send it to each other machine, once."""
        links, self._unsent = self._unsent, {}
        for rank, link in links.items():
            if rank != end.rank:
                with suppress(OSError):
                    link.sendall(json.dumps(asdict(end)).encode() + b"\n")


def receive(link: socket.socket, rank: int, host: str) -> MachineEnd:
    """What it means that a connection can be read, or is broken."""
    try:
        line = link.makefile("rb").readline(MAX_LINE_BYTES)
        return (
            MachineEnd(**json.loads(line))
            if line
            else MachineEnd(rank, CRASH_EXIT_CODE, _gone(host, "connection closed"))
        )
    except ConnectionResetError:
        return MachineEnd(rank, CRASH_EXIT_CODE, _gone(host, "connection closed"))
    except (OSError, ValueError, TypeError):
        return MachineEnd(rank, CRASH_EXIT_CODE, _gone(host, f"no answer for {ANSWER_SECONDS} s"), answers=False)


def _gone(host: str, reason: str) -> str:
    return f"{host} of this run is gone ({reason}), stopping; rerun to resume"


def link_machines(request: StopRequest, guard: OrphanGuard, *, seconds: float) -> None:
    """Connect the machines of this run, so that all end when one is gone. On all processes; nothing on one machine.

    Before the process group is there, which takes as long as --ddp_timeout when a machine dies meanwhile: the meeting
    exchanges the places.

    Raises:
        UserError: when a machine cannot connect to that of rank 0, or a process does not come within `seconds`.
    """
    if not spans_machines():
        return
    rank, listener, problem = process_rank(), None, None
    if rank == 0:
        listener = listen()
    own = {
        "machine": machine_identity(),
        "host": socket.gethostname(),
        "process": asdict(ProcessHandle.of(os.getpid())),
        "port": 0 if listener is None else listener.getsockname()[1],
        "token": os.urandom(TOKEN_BYTES).hex(),
    }
    found = gather("links", own, seconds=seconds)
    machines = [each["machine"] for each in found]
    peers = {number: ProcessHandle(**each["process"]) for number, each in enumerate(found) if number != rank}
    guard.watch({number: peer for number, peer in peers.items() if machines[number] == own["machine"]})
    hosts = {machines.index(each["machine"]): each["host"] for each in found}
    port, token = found[0]["port"], bytes.fromhex(found[0]["token"])
    links = {}
    if listener is not None:
        links = accept(listener, token, hosts.keys() - {0}, seconds=CONNECT_SECONDS)
    elif rank in hosts:
        try:
            links = {0: connect(os.environ["MASTER_ADDR"], port, token, rank, seconds=CONNECT_SECONDS)}
        except OSError as error:
            reason = error.strerror or error
            problem = f"{hosts[rank]}: cannot connect to port {port} of {hosts[0]} ({reason}); allow all ports between"
    if problems := [each for each in gather("linked", problem, seconds=seconds) if each is not None]:
        leave(problems)
    if links:
        _keep(MachineLinks(links, hosts, request, guard))


def _keep(thread: MachineLinks) -> None:
    EXIT_LISTENERS.append(thread.announce_exit)
    os.register_at_fork(after_in_child=thread.close)
    thread.start()


@contextmanager
def naming_lost_peers() -> Iterator[None]:
    """Let the orphan guard or a link end this process with one line when a collective fails, not with a traceback."""
    try:
        yield
    except RuntimeError as error:
        if "gloo" in str(error) or "NCCL" in str(error):
            time.sleep(LOST_PEER_SECONDS)
        raise
