"""What happened in a run, as its folder records it: run.json and metrics.jsonl, read once for report and card."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretraining.errors import UserError
from pretraining.runs.record_file import read_run_record
from pretraining.runs.run_folder import METRICS_NAME
from pretraining.runs.tracking.metrics_file import EVALUATIONS, TIME_PARTS, Record, number_of, read_log

JOULES_PER_KILOWATT_HOUR = 3.6e6
SECONDS_PER_HOUR = 3600
TARGET_REACHED = "target reached"  # an event
TOTAL = "total"  # of the seconds, next to their parts


@dataclass
class _Start:
    """Processes, seconds by part and in total, and joules of one start."""

    num_processes: int | None
    seconds: dict[str, float] = field(default_factory=dict)
    joules: float = 0.0


class RunCost:
    """Hours, their parts, GPU hours and energy over all starts of a run; what was not measured is None.

    The summary of a start that ended has all its time, also that after its last record. Of a killed start only the
    steps count that the log has kept: those up to the checkpoint that the run resumed from.
    """

    def __init__(self, run_record: Mapping[str, Any]) -> None:
        self._usual = run_record.get("hardware", {}).get("num_processes")
        self._starts: list[_Start] = []

    def add(self, record: Mapping[str, Any]) -> None:
        """Add the next record of metrics.jsonl. The energy counter of each start begins at 0."""
        kind = record.get("event")
        if kind == "start" or not self._starts:
            self._starts.append(_Start(record.get("num_processes", self._usual)))
        start = self._starts[-1]
        start.joules = max(start.joules, number_of(record, "energy_joules"))
        names = {TOTAL: "total_seconds" if kind == "summary" else "interval_seconds"}
        names |= {part: f"{part}_seconds" for part in TIME_PARTS}
        seconds = {part: number_of(record, name) for part, name in names.items() if name in record}
        if kind != "summary":
            start.seconds |= {part: start.seconds.get(part, 0.0) + more for part, more in seconds.items()}
        elif seconds.get(TOTAL, 0.0) >= start.seconds.get(TOTAL, 0.0):
            start.seconds = seconds

    @property
    def hours(self) -> float | None:
        """Wall-clock hours of each start from its first step on, with all evaluations, saves and the final export."""
        return self._seconds(TOTAL) / SECONDS_PER_HOUR or None

    @property
    def shares(self) -> dict[str, float]:
        """The parts of these hours, as shares from 0 to 1."""
        total = self._seconds(TOTAL)
        parts = [part for part in TIME_PARTS if any(part in start.seconds for start in self._starts)]
        return {part: self._seconds(part) / total for part in parts} if total else {}

    def _seconds(self, part: str) -> float:
        return sum(start.seconds.get(part, 0.0) for start in self._starts)

    @property
    def process_hours(self) -> float | None:
        """Hours summed over processes, one per GPU."""
        times = [(one.num_processes, one.seconds[TOTAL]) for one in self._starts if one.seconds.get(TOTAL)]
        if any(count is None for count, _ in times):
            return None
        return sum((count or 0) * seconds for count, seconds in times) / SECONDS_PER_HOUR or None

    @property
    def kilowatt_hours(self) -> float | None:
        """Energy of the GPUs."""
        return sum(start.joules for start in self._starts) / JOULES_PER_KILOWATT_HOUR or None


@dataclass
class RunHistory:
    """The newest training record, the newest evaluation of each split, all events, and the cost of the run.

    Other records are not kept: a million of them would take 4 GB.
    """

    run_dir: Path
    run_record: Record
    last: Record = field(default_factory=dict)
    evaluations: dict[str, Record] = field(default_factory=dict)
    events: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start with a cost of 0."""
        self.cost = RunCost(self.run_record)

    def add(self, record: Record) -> None:
        """Add the next record of metrics.jsonl."""
        self.cost.add(record)
        if "event" in record:
            self.events.append(record)
        elif "loss" in record:
            self.last = record
        for prefix in EVALUATIONS:
            if f"{prefix}_loss" in record:
                self.evaluations[prefix] = record

    def has_reached_target(self, step: int) -> bool:
        """Whether --target_loss ended the run after this step."""
        return any(event["event"] == TARGET_REACHED and event["step"] == step for event in self.events)


def read_history(run_dir: Path, *, until_step: float = math.inf) -> RunHistory:
    """What had happened in a run at the end of a step; damaged lines, which a kill can leave at the end, are skipped.

    Raises:
        UserError: when the folder holds no run.
    """
    history = RunHistory(run_dir, read_run_record(run_dir))
    for record in read_records(run_dir):
        if record["step"] <= until_step:
            history.add(record)
    return history


def read_records(run_dir: Path) -> Iterator[Record]:
    """Yield the records of metrics.jsonl one by one, in memory that does not grow with the run.

    Raises:
        UserError: when the file cannot be read.
    """
    try:
        yield from read_log(run_dir / METRICS_NAME)
    except OSError as error:
        raise UserError(f"{run_dir / METRICS_NAME}: cannot be read ({error.strerror}); pass a run folder") from None


def format_significant(value: float) -> str:
    """A number with three significant digits, or all digits of a larger integer part.

    >>> [format_significant(value) for value in (184320.4, 99.94, 0.00891)]
    ['184,320', '99.9', '0.00891']
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
