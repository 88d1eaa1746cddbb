"""Signals that ask a run to stop, and the processes that send them."""

import signal
from dataclasses import dataclass

from pretraining.system.launchers import stat_words

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def leave_signals_to_the_parent(_worker: int) -> None:
    """For workers of a DataLoader, which get the signals of their group: their death would end the run unsaved."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class ProcessHandle:
    """A process of this machine, which another one of the same number is not taken for."""

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "ProcessHandle":
        """The process of this number, which must exist."""
        return cls(pid, stat_words(pid)[19])

    def is_alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        try:
            words = stat_words(self.pid)
        except OSError:
            return False
        return words[0] not in "ZX" and words[19] == self.started
