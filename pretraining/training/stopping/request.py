"""A request to stop: who made it, what signals mean in each phase of a run, and the deadline of --max_hours.

Imports no torch.
"""

import os
import signal
import time
from datetime import datetime
from enum import Enum
from types import FrameType

from pretraining.errors import CRASH_EXIT_CODE, STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE
from pretraining.system.processes import STOP_SIGNALS
from pretraining.system.supervision import run_age_seconds

# From a process of this run that has logged why the whole run ends: after a user error, a crash, or a stop.
END_SIGNAL, CRASH_SIGNAL, STOPPED_SIGNAL = signal.SIGRTMIN + 1, signal.SIGRTMIN + 2, signal.SIGRTMIN + 3
END_CODES = {END_SIGNAL: USER_ERROR_EXIT_CODE, CRASH_SIGNAL: CRASH_EXIT_CODE, STOPPED_SIGNAL: STOPPED_EXIT_CODE}
# In rising order: of several requests the last is reported. After Ctrl-C a launcher sends SIGTERM as well.
REASONS = ("", "--max_hours", "the file STOP", "the launcher is gone", "SIGUSR1", "SIGHUP", "SIGTERM", "SIGINT")
ASSUMED_SAVE_SECONDS = 120.0  # before any save was measured, but never more than a tenth of --max_hours
SPARE_STEPS = 3


class Phase(Enum):
    """Where a run is, with regard to stopping."""

    BEFORE = "before the first step: signals have their usual effect"
    TRAINING = "a request stops the run at the end of the step, with a checkpoint"
    AFTER = "trained and saved: a request stops the run at once"
    LEAVING = "a request has no effect any more"


class StopRequest:
    """Whether this process was asked to stop, and why.

    `wakeup` is a pipe that receives each signal's number at once, even while the main thread is inside a collective,
    where Python's handlers have to wait.
    """

    def __init__(self) -> None:
        self.phase = Phase.BEFORE
        self.code = 0
        self.is_agreed = False
        self.wakeup, self._signaled = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def reason(self) -> str:
        """The reason in words; empty without a request."""
        return REASONS[self.code]

    def request(self, reason: str) -> None:
        """Ask to stop, for one of `REASONS`."""
        self.code = max(self.code, REASONS.index(reason))

    def listen(self) -> None:
        """From now on another process of this run can end this one, with its exit code."""
        signal.set_wakeup_fd(self._signaled, warn_on_full_buffer=False)
        for end in END_CODES:
            signal.signal(end, lambda *_: None)  # OrphanGuard's thread reads it from the pipe

    def begin_training(self) -> None:
        """From now on signals are requests to stop."""
        self.phase = Phase.TRAINING
        for number in STOP_SIGNALS:
            # Under nohup a terminal may close. torchrun (2.13) ends even so, and its ranks have the default handler.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def end_training(self) -> None:
        """From now on there is nothing to save."""
        self.phase = Phase.LEAVING if self.is_agreed else Phase.AFTER

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.request(signal.Signals(number).name)


class TimeLimit:
    """When the last save has to start so that the run ends within --max_hours; None for no limit."""

    def __init__(self, hours: float | None) -> None:
        self._hours = hours
        self._ends_at = None if hours is None else time.monotonic() - run_age_seconds() + 3600 * hours
        self._step_started_at = 0.0
        self._longest_step = 0.0
        self.longest_save = 0.0

    def begin_step(self) -> None:
        """Start to time a step."""
        self._step_started_at = time.monotonic()

    def end_step(self) -> None:
        """Keep the time of the longest step, without what happens between steps."""
        self._longest_step = max(self._longest_step, time.monotonic() - self._step_started_at)

    def is_reached(self) -> bool:
        """Whether it is time to save."""
        if self._ends_at is None:
            return False
        return time.monotonic() + self._save_seconds() + SPARE_STEPS * self._longest_step > self._ends_at

    def description(self) -> str | None:
        """When the run will stop, and the time reserved for the save; None without a limit."""
        if self._ends_at is None:
            return None
        seconds = self._ends_at - time.monotonic() - self._save_seconds()
        at = datetime.fromtimestamp(time.time() + seconds).astimezone()
        source = "the longest so far" if self.longest_save else "an assumption before the first save"
        return (
            f"--max_hours {self._hours:g}: saves and stops {SPARE_STEPS} steps before {at:%Y-%m-%d %H:%M:%S}, with "
            f"{self._save_seconds():.0f} s for the save ({source})"
        )

    def _save_seconds(self) -> float:
        return self.longest_save or min(ASSUMED_SAVE_SECONDS, 360 * (self._hours or 0))
