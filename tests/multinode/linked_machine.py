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
    machine_links.COMMON_GRACE_SECONDS = 0.5
    request = StopRequest()
    request.phase = Phase[phase]
    links, ends = {}, {}
    for rank in (2, 4) if process_rank() == 0 else (0,):
        links[rank], ends[rank] = socket.socketpair()
    thread = MachineLinks(links, HOSTS, request, Guard(request))
    thread.start()
    EXIT_LISTENERS.append(thread.announce_exit)
    speaker = ends.pop(max(ends))
    if os.fork() == 0:  # hears what this process says, also at its end
        thread.close()
        speaker.close()
        for rank, end in ends.items():
            say("sent", rank, end.makefile().read())
        os._exit(0)
    for end in ends.values():
        end.close()
    if line:
        speaker.sendall(line.encode() + b"\n")
    speaker.close()
    time.sleep(2)
    say("alive")
    hard_exit(message, 9)


if __name__ == "__main__":
    main(*sys.argv[1:])
