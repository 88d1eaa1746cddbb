"""What a run has cost, over all its starts: hours, GPU hours, energy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pretraining.runs.tracking.metrics_file import number_of

JOULES_PER_KILOWATT_HOUR = 3.6e6
SECONDS_PER_HOUR = 3600


@dataclass
class _Start:
    """What one start has cost until now."""

    num_processes: int | None
    seconds: float = 0.0
    joules: float = 0.0


class RunCost:
    """Adds up the records of metrics.jsonl in their order; what was not measured is None.

    A start that came to its end tells all its time in its summary. Of one that was killed only the steps count which
    the log has kept: those up to the checkpoint that the run went on from.
    """

    def __init__(self, run_record: Mapping[str, Any]) -> None:
        self._usual = run_record.get("hardware", {}).get("num_processes")
        self._starts: list[_Start] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in the next record. Each start counts its energy anew."""
        kind = record.get("event")
        if kind == "start" or not self._starts:
            self._starts.append(_Start(record.get("num_processes", self._usual)))
        start = self._starts[-1]
        start.joules = max(start.joules, number_of(record, "energy_joules"))
        if kind == "summary":
            start.seconds = max(start.seconds, number_of(record, "total_seconds"))
        else:
            start.seconds += number_of(record, "interval_seconds")

    @property
    def hours(self) -> float | None:
        """From first steps to last ones, evaluations and saves among them."""
        return sum(start.seconds for start in self._starts) / SECONDS_PER_HOUR or None

    @property
    def process_hours(self) -> float | None:
        """The same, of each process."""
        times = [(start.num_processes, start.seconds) for start in self._starts if start.seconds]
        if any(count is None for count, _ in times):
            return None
        return sum((count or 0) * seconds for count, seconds in times) / SECONDS_PER_HOUR or None

    @property
    def kilowatt_hours(self) -> float | None:
        """The energy of the GPUs."""
        return sum(start.joules for start in self._starts) / JOULES_PER_KILOWATT_HOUR or None


def format_significant(value: float) -> str:
    """A figure as exactly as it is worth telling.

    >>> [three_digits(value) for value in (184320.4, 99.94, 0.00891)]
    ['184,320', '99.9', '0.00891']
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
