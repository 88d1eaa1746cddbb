"""A request to stop: who asked for it, and what signals mean in each part of a run. Imports no torch."""

import os
import signal
from enum import Enum
from types import FrameType

from pretraining.system.processes import STOP_SIGNALS

END_SIGNAL = signal.SIGRTMIN + 1  # from another process of the run that has said why it ends; the whole run does then
# In rising order: where several ask, the last of them is named. Ctrl-C has a launcher send SIGTERM after it.
REASONS = ("", "--max_hours", "the file STOP", "the launcher is gone", "SIGUSR1", "SIGHUP", "SIGTERM", "SIGINT")


class Phase(Enum):
    """Where a run is, as far as stopping goes."""

    BEFORE = "before the first step: signals do what they do to any program"
    TRAINING = "a request is honoured at the end of the step, with a checkpoint"
    AFTER = "trained and saved: a request is honoured at once"
    LEAVING = "a request changes nothing any more"


class StopRequest:
    """Who asked this process to stop, if anybody has.

    `wakeup` is a pipe that has each signal's number at once, even while the main thread is inside a collective, where
    Python's handlers have to wait.
    """

    def __init__(self) -> None:
        self.phase = Phase.BEFORE
        self.code = 0
        self.is_agreed = False
        self.wakeup, self._signalled = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def reason(self) -> str:
        """Who asked, in words; empty when nobody has."""
        return REASONS[self.code]

    def ask(self, reason: str) -> None:
        """Ask to stop."""
        self.code = max(self.code, REASONS.index(reason))

    def begin_training(self) -> None:
        """From now on signals ask to stop."""
        self.phase = Phase.TRAINING
        signal.set_wakeup_fd(self._signalled, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            # Under nohup a terminal may be closed. torchrun (2.13) ends even so, and its ranks have the default here.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._note)
        signal.signal(END_SIGNAL, lambda *_: None)  # the pipe has it, for a thread that reads it

    def end_training(self) -> None:
        """From now on there is nothing to save."""
        self.phase = Phase.LEAVING if self.is_agreed else Phase.AFTER

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.ask(signal.Signals(number).name)
