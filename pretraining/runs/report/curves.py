"""The metrics of a run as curves for its report, in memory that does not grow with the run."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pretraining.runs.history import RunHistory, read_records
from pretraining.runs.tracking.metrics_file import EVALUATIONS, TASK_PREFIX, Record, describe_part

MAX_BINS = 300  # up to twice as many, of two points each, for charts about 1,000 pixels wide
# In place of "eval_" in the names of the metrics of a part of validation, which is a separate curve.
PART = "part"
TASK = TASK_PREFIX.rstrip("/")
NUMBERS = (int, float, str)  # "nan" and "inf" are written as words


class Point(NamedTuple):
    """A metric at a step; None where it was NaN or Inf, which a curve must not bridge."""

    step: int
    value: float | None


@dataclass(frozen=True)
class Bin:
    """A part of a curve, from after one step to another: its lowest and highest point in order, its sum and count."""

    ends: list[Point]
    after_step: int
    step: int
    total: float
    count: int


@dataclass
class DownsampledRecords:
    """Records of which every bin keeps the lowest and the highest value of each metric.

    A spike of one step in 500,000 stays visible. Short runs keep all values.
    """

    bins: dict[str, list[Bin]] = field(default_factory=dict)
    records_per_bin: int = 1
    _waiting: list[Record] = field(default_factory=list)
    _num_bins: int = 0
    _last_step: int = 0

    def add(self, record: Record) -> None:
        """Add the next record."""
        self._waiting.append(record)
        if len(self._waiting) == self.records_per_bin:
            self.flush()
            if self._num_bins >= 2 * MAX_BINS:
                self.bins = {name: [_merged(pair) for pair in _pairs(bins)] for name, bins in self.bins.items()}
                self._num_bins //= 2
                self.records_per_bin *= 2

    def flush(self) -> None:
        """Make a bin of the records that were added since the last one."""
        if not self._waiting:
            return
        steps = [record["step"] for record in self._waiting]
        for name in dict.fromkeys(name for record in self._waiting for name in record):
            values = [record.get(name) for record in self._waiting]
            if isinstance(next((value for value in values if value is not None), None), NUMBERS):
                self._add_bin(name, steps, values)
        self._num_bins += 1
        self._last_step = steps[-1]
        self._waiting.clear()

    def curve(self, name: str) -> list[Point]:
        """The points of a metric by step; none if the records do not have it."""
        return [point for bin_ in self.bins.get(name, ()) for point in bin_.ends]

    def means(self, name: str) -> list[Point]:
        """The mean of each bin, at its last step."""
        bins = self.bins.get(name, ())
        return [Point(bin_.step, bin_.total / bin_.count if bin_.count else None) for bin_ in bins]

    def _add_bin(self, name: str, steps: list[int], values: list[Any]) -> None:
        try:
            numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
        except ValueError:
            return  # a text
        finite = np.flatnonzero(np.isfinite(numbers))
        points = [Point(steps[0], None)]
        if len(finite):
            ends = {int(finite[np.argmin(numbers[finite])]), int(finite[np.argmax(numbers[finite])])}
            points = [Point(steps[index], float(numbers[index])) for index in sorted(ends)]
        bin_ = Bin(points, self._last_step, steps[-1], float(numbers[finite].sum()), len(finite))
        self.bins.setdefault(name, []).append(bin_)


def _pairs(bins: list[Bin]) -> Iterator[list[Bin]]:
    return (bins[index : index + 2] for index in range(0, len(bins), 2))


def _merged(bins: list[Bin]) -> Bin:
    points = [point for bin_ in bins for point in bin_.ends]
    numbers = [(point.value, place) for place, point in enumerate(points) if point.value is not None]
    ends = [points[place] for place in sorted({min(numbers)[1], max(numbers)[1]})] if numbers else points[:1]
    total, count = sum(bin_.total for bin_ in bins), sum(bin_.count for bin_ in bins)
    return Bin(ends, bins[0].after_step, bins[-1].step, total, count)


@dataclass
class RunCurves(RunHistory):
    """The history of a run with the curves that its report draws; times in unix seconds."""

    training: DownsampledRecords = field(default_factory=DownsampledRecords)
    evaluated: dict[str, DownsampledRecords] = field(
        default_factory=lambda: {prefix: DownsampledRecords() for prefix in (*EVALUATIONS, PART, TASK)}
    )
    logged_at: list[float] = field(default_factory=list)  # the first and the last time

    def add(self, record: Record) -> None:
        """Add the next record of metrics.jsonl."""
        super().add(record)
        if record.get("logged_at") is not None:
            times = [*self.logged_at, record["logged_at"]]
            self.logged_at = [min(times), max(times)]
        if "event" in record:
            return
        if "loss" in record:
            self.training.add(record)
            return
        for prefix in EVALUATIONS:
            if f"{prefix}_loss" in record:
                tasks = {name: value for name, value in record.items() if name.startswith(TASK_PREFIX)}
                others = {name: value for name, value in record.items() if name not in tasks}
                is_part = bool(describe_part(record, prefix))
                self.evaluated[PART if is_part else prefix].add(_renamed(others, prefix) if is_part else others)
                if tasks:  # all examples of each, also beside a part of validation
                    self.evaluated[TASK].add({"step": record["step"], **tasks})

    def records_of(self, name: str) -> DownsampledRecords:
        """The records that have a metric: names of evaluations start with that of their split, or with `task/`."""
        prefix = TASK if name.startswith(TASK_PREFIX) else name.partition("_")[0]
        return self.evaluated.get(prefix, self.training)

    def curve(self, name: str) -> list[Point]:
        """The points of a metric."""
        return self.records_of(name).curve(name)

    def names(self) -> list[str]:
        """The names of all metrics."""
        return [name for records in (self.training, *self.evaluated.values()) for name in records.bins]

    def tokens_at(self, step: float) -> float | None:
        """Tokens trained on until a step, interpolated between records; None when no record has them."""
        steps, tokens = self._tokens
        if len(steps) == 1:
            return None
        beyond = max(0, step - steps[-1]) * self.run_record.get("identity", {}).get("global_batch_tokens", 0)
        return round(float(np.interp(step, steps, tokens)) + beyond)

    @cached_property
    def _tokens(self) -> tuple[np.ndarray, np.ndarray]:
        points = [Point(0, 0.0), *(point for point in self.training.curve("tokens") if point.value is not None)]
        return np.array([point.step for point in points]), np.array([point.value for point in points])


def _renamed(record: Record, prefix: str) -> Record:
    """The record of a part of a split, with other names for its metrics."""
    return {f"{PART}{name.removeprefix(prefix)}" if name.startswith(prefix) else name: record[name] for name in record}


def read_curves(run_dir: Path, run_record: Record) -> RunCurves:
    """Read metrics.jsonl once, from beginning to end.

    Raises:
        UserError: when it cannot be read.
    """
    run = RunCurves(run_dir, run_record)
    for record in read_records(run_dir):
        run.add(record)
    for records in (run.training, *run.evaluated.values()):
        records.flush()
    return run
