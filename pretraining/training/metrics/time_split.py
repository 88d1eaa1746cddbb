"""Where the time of a run goes: at each instant one part counts, so the parts always sum to the whole."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Part = Literal["data", "forward_backward", "optimizer", "save", "evaluation", "other"]
PARTS: tuple[Part, ...] = get_args(Part)


class TimeBreakdown:
    """Counts seconds by part. What has no part of its own, such as callbacks and the log, is "other"."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.start()

    def start(self) -> None:
        """Count from now, from nothing."""
        self._part: Part = "other"
        self._since = self._clock()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._totals = dict.fromkeys(PARTS, 0.0)

    def enter(self, part: Part) -> Part:
        """Count what comes now for `part`; the one before is returned."""
        before, now = self._part, self._clock()
        self._seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Count what is done in here for `part`, and what comes then for the one before."""
        before = self.enter(part)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, seconds: float, source: Part, target: Part) -> None:
        """Count for `target` what was counted for `source`, since a GPU was slower with it than the host."""
        seconds = min(max(seconds, 0.0), self._seconds[source])
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def take(self) -> dict[str, float]:
        """The seconds since they were last taken, as keys of the log; `interval_seconds` is their sum."""
        self.enter(self._part)
        for part, seconds in self._seconds.items():
            self._totals[part] += seconds
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return _as_figures(taken, "interval_seconds")

    def totals(self) -> dict[str, float]:
        """All that was taken since the start; `total_seconds` is the sum."""
        return _as_figures(self._totals, "total_seconds")


def _as_figures(seconds: dict[Part, float], name_of_sum: str) -> dict[str, float]:
    """To the microsecond, the sum of what is written exactly: a log has to add up."""
    rounded = {f"{part}_seconds": round(value, 6) for part, value in seconds.items()}
    return {name_of_sum: round(sum(rounded.values()), 6), **rounded}
