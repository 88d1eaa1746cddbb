"""Where the time of a run goes: each instant counts for exactly one part, so the parts add up to the whole."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Part = Literal["data", "forward_backward", "optimizer", "save", "evaluation", "other"]
PARTS: tuple[Part, ...] = get_args(Part)


class TimeBreakdown:
    """Counts seconds by part. Callbacks, the log and whatever has no separate part are "other"."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.start()

    def start(self) -> None:
        """Reset all counts and start now."""
        self._part: Part = "other"
        self._since = self._clock()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._totals = dict.fromkeys(PARTS, 0.0)

    def enter(self, part: Part) -> Part:
        """Count for `part` from now on; returns the previous part."""
        before, now = self._part, self._clock()
        self._seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Count the body for `part`, then return to the previous part."""
        before = self.enter(part)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, seconds: float, source: Part, target: Part) -> None:
        """Move seconds from `source` to `target`: work that the GPU did later than the host."""
        seconds = min(max(seconds, 0.0), self._seconds[source])
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def take(self) -> dict[str, float]:
        """The seconds since the last call, as keys of the log; `interval_seconds` is their sum."""
        self.enter(self._part)
        for part, seconds in self._seconds.items():
            self._totals[part] += seconds
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return _as_metrics(taken, "interval_seconds")

    def totals(self) -> dict[str, float]:
        """The sum of all that `take` returned since the start; `total_seconds` is the total."""
        return _as_metrics(self._totals, "total_seconds")


def _as_metrics(seconds: dict[Part, float], name_of_sum: str) -> dict[str, float]:
    """Rounded to the microsecond; the sum is that of the rounded values, so that the log adds up."""
    rounded = {f"{part}_seconds": round(value, 6) for part, value in seconds.items()}
    return {name_of_sum: round(sum(rounded.values()), 6), **rounded}
