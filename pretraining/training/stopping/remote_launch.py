"""What `deepspeed --hostfile` leaves behind on the machines: it starts pdsh, which starts ssh, whose other end is sshd.

A kill of the command, or of pdsh, leaves the ranks running; an ssh whose link is cut waits for hours (pdsh 2.34, sshd
without ServerAliveInterval). None of them is an ancestor of the ranks.
"""

import base64
import json
import os
import select
import signal
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pretraining.system.launchers import launcher_identity
from pretraining.system.processes import ProcessHandle, command_words, stat_words

WORLD_FLAG = "--world_info="
PORT_FLAG = "--master_port="


def is_below_sshd(launcher: int) -> bool:
    """Whether a launcher was started by ssh, directly or by the shell that sshd starts."""
    with suppress(OSError):
        parents = [launcher]
        for _ in range(2):
            parents.append(int(stat_words(parents[-1])[1]))
        return any(Path(f"/proc/{parent}/comm").read_text().startswith("sshd") for parent in parents[1:])
    return False


def pdsh_runner(launcher: int) -> ProcessHandle | None:
    """The `deepspeed --hostfile` command that started a launcher, if it runs on this machine."""
    with suppress(OSError):
        for pid in _processes_that_start(launcher, "pdsh"):
            return ProcessHandle.of(int(stat_words(pid)[1]))
    return None


def stderr_is_closed() -> bool:
    """Whether nobody reads what this process logs into a pipe any more."""
    mode = os.fstat(2).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return False
    poll = select.poll()
    poll.register(2, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def end_connections_to(rank: int) -> None:
    """End the ssh that waits for the machine of this rank, which does not answer: pdsh would wait with it."""
    with suppress(OSError, ValueError):
        launcher = int(launcher_identity().split("-")[0])
        (world,) = _launch_words(launcher, WORLD_FLAG)
        host = host_of_rank(json.loads(base64.urlsafe_b64decode(world.removeprefix(WORLD_FLAG))), rank)
        for pid in _processes_that_start(launcher, "ssh"):
            if host in command_words(pid):
                os.kill(pid, signal.SIGTERM)


def host_of_rank(world: dict[str, list[int]], rank: int) -> str:
    """The host of a rank by deepspeed's description of the hosts and their slots.

    >>> host_of_rank({"a": [0, 1], "b": [0]}, 2)
    'b'
    """
    return [host for host, slots in world.items() for _ in slots][rank]


def _processes_that_start(launcher: int, program: str) -> Iterator[int]:
    """The processes of a program on this machine whose command line contains that of the launcher."""
    words = _launch_words(launcher, WORLD_FLAG, PORT_FLAG)
    for path in Path("/proc").glob("[0-9]*") if words else ():
        command = command_words(int(path.name))
        # By its first word: the file of Debian's pdsh has another name.
        if command and Path(command[0]).name == program and all(word in " ".join(command) for word in words):
            yield int(path.name)


def _launch_words(launcher: int, *flags: str) -> list[str]:
    return [word for word in command_words(launcher) if word.startswith(flags)]
