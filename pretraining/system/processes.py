"""Processes of this machine, as /proc shows them, and the signals that ask a run to stop."""

import ctypes
import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def ignore_stop_signals(_worker: int) -> None:
    """Ignore them in a worker of a DataLoader, which gets the signals of its group: its death would end the run."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread of its parent that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def stat_words(pid: int) -> list[str]:
    """State, parent and so on of a process, up to its start time in ticks since boot at index 19.

    The name comes before them, in parentheses; it can contain any bytes.

    Raises:
        OSError: when the process does not exist.
    """
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def command_words(pid: int) -> list[str]:
    """The command line of a process, as its `sys.argv` has it; empty when it does not exist."""
    with suppress(OSError):
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    return []


def boot_id() -> str:
    """The same for all processes of this machine until it is booted again; containers share it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def machine_identity() -> str:
    """The same for processes of one machine that see each other; containers on one machine count as machines."""
    return f"{boot_id()} {Path('/proc/self/ns/pid').readlink()}"


@dataclass(frozen=True)
class ProcessHandle:
    """A process of this machine, not to be confused with a later one of the same number."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "ProcessHandle":
        """The process of this number.

        Raises:
            OSError: when the process does not exist.
        """
        return cls(pid, stat_words(pid)[19])

    def __str__(self) -> str:
        """As in names of folders and in the environment: number and start."""
        return f"{self.pid}-{self.started}"

    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        try:
            words = stat_words(self.pid)
        except OSError:
            return False
        return words[0] not in "ZX" and words[19] == self.started

    def parent(self) -> int:
        """The number of its parent, 0 when it has ended."""
        with suppress(OSError):
            words = stat_words(self.pid)
            return int(words[1]) if words[19] == self.started else 0
        return 0


def descendants(pid: int) -> list[ProcessHandle]:
    """The processes below one, parents before their children; zombies included."""
    children: dict[int, list[ProcessHandle]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = stat_words(int(path.name))
            children.setdefault(int(words[1]), []).append(ProcessHandle(int(path.name), words[19]))
    found = list(children.get(pid, []))
    for process in found:  # which grows
        found += children.get(process.pid, [])
    return found
