"""--max_hours: when a run has to begin its last save, so that it ends in time."""

import time
from datetime import datetime

from pretraining.system.supervision import run_age_seconds

ASSUMED_SAVE_SECONDS = 120.0  # before any save was measured, but never more than a tenth of the time there is
STEPS_TO_SPARE = 3


class TimeLimit:
    """How long a run may still train. Without hours it may for ever."""

    def __init__(self, hours: float | None) -> None:
        self._hours = hours
        self._ends_at = None if hours is None else time.monotonic() - run_age_seconds() + 3600 * hours
        self._step_began_at = 0.0
        self._longest_step = 0.0
        self.longest_save = 0.0

    def begin_step(self) -> None:
        """Measure from here."""
        self._step_began_at = time.monotonic()

    def end_step(self) -> None:
        """Know how long a step can take, without what comes between steps."""
        self._longest_step = max(self._longest_step, time.monotonic() - self._step_began_at)

    def is_reached(self) -> bool:
        """Whether it is time to save."""
        if self._ends_at is None:
            return False
        return time.monotonic() + self._save_seconds() + STEPS_TO_SPARE * self._longest_step > self._ends_at

    def described(self) -> str | None:
        """When the run will stop, and what that is made of."""
        if self._ends_at is None:
            return None
        seconds = self._ends_at - time.monotonic() - self._save_seconds()
        at = datetime.fromtimestamp(time.time() + seconds).astimezone()
        known = "as the longest so far" if self.longest_save else "as none was measured yet"
        return (
            f"--max_hours {self._hours:g}: saves and stops {STEPS_TO_SPARE} steps before {at:%Y-%m-%d %H:%M:%S}, with "
            f"{self._save_seconds():.0f} s for the save, {known}"
        )

    def _save_seconds(self) -> float:
        return self.longest_save or min(ASSUMED_SAVE_SECONDS, 360 * (self._hours or 0))
