"""Rank 0 or 2 of a run on three machines, whose connections this process holds at both ends.

    RANK=0 linked_machine.py LINE PHASE MESSAGE

Sends itself LINE, or nothing, as node-c (as node-a to rank 2), and closes that connection. If it is not ended by that,
it ends with the code 9 and MESSAGE. Prints what it sends to the others.
"""

import os
import socket
import sys
import time

from pretraining.cli.program import EXIT_LISTENERS, hard_exit
from pretraining.system.launchers import process_rank
from pretraining.training.stopping import machine_links
from pretraining.training.stopping.machine_links import MachineLinks
from pretraining.training.stopping.orphan_guard import OrphanGuard
from pretraining.training.stopping.request import Phase, StopRequest

HOSTS = {0: "node-a", 2: "node-b", 4: "node-c"}


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Guard(OrphanGuard):
    """Has no other processes on this machine."""

    def end_peers(self, exit_code: int = 2) -> None:
        say("peers", exit_code)


def main(line: str, phase: str, message: str) -> None:
    ranks = (2, 4) if process_rank() == 0 else (0,)
    pairs = {rank: socket.socketpair() for rank in ranks}
    speaker = pairs[max(pairs)][1]
    if pid := os.fork():
        listen_to(pairs, speaker, line)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    for _, other_end in pairs.values():
        other_end.close()
    run_rank({rank: link for rank, (link, _) in pairs.items()}, phase, message)


def listen_to(pairs: dict[int, tuple[socket.socket, socket.socket]], speaker: socket.socket, line: str) -> None:
    for link, _ in pairs.values():
        link.close()
    if line:
        speaker.sendall(line.encode() + b"\n")
    speaker.close()
    for rank, (_, other_end) in pairs.items():
        if other_end is not speaker:
            say("sent", rank, other_end.makefile().read())


def run_rank(links: dict[int, socket.socket], phase: str, message: str) -> None:
    machine_links.COMMON_GRACE_SECONDS = 0.5
    request = StopRequest()
    request.phase = Phase[phase]
    thread = MachineLinks(links, HOSTS, request, Guard(request))
    EXIT_LISTENERS.append(thread.announce_exit)
    thread.start()
    time.sleep(2)
    say("alive")
    hard_exit(message, 9)


if __name__ == "__main__":
    main(*sys.argv[1:])
