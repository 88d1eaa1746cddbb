"""The figures of a run as curves, in a memory that does not grow with the run: what its report draws."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pretraining.runs.cost import RunCost
from pretraining.runs.history import Record, read_records

MOST_BINS = 300  # and up to twice as many, of two points each, for charts of some 1,000 pixels
# What adds up over steps: its mean is drawn, and its sum told.
SUMMED_ENDING = "_seconds"
NUMBERS = (int, float, str)  # "nan" and "inf" are written as words


@dataclass(frozen=True)
class Point:
    """A figure at a step; None where it was no number, which a curve must not bridge."""

    step: int
    value: float | None


@dataclass(frozen=True)
class Total:
    """All that a figure added up to between two steps, the first not counted in."""

    after_step: int
    step: int
    seconds: float


@dataclass(frozen=True)
class Bin:
    """A stretch of a curve: its lowest and highest point in their order, and what makes its mean."""

    ends: list[Point]
    step: int  # the last one
    total: float
    count: int


@dataclass
class DownsampledRecords:
    """Records as they come in, of which every stretch keeps the lowest and the highest value of each figure.

    A spike of one step in 500,000 is still seen. Short runs keep all values.
    """

    bins: dict[str, list[Bin]] = field(default_factory=dict)
    totals: dict[str, list[Total]] = field(default_factory=dict)
    last: Record = field(default_factory=dict)
    num_records: int = 0
    _waiting: list[Record] = field(default_factory=list)
    records_per_bin: int = 1
    _num_bins: int = 0
    _last_step: int = 0

    def add(self, record: Record) -> None:
        """Take in the next record."""
        self.num_records += 1
        self.last = record
        self._waiting.append(record)
        if len(self._waiting) == self.records_per_bin:
            self.flush()
            if self._num_bins >= 2 * MOST_BINS:
                self._merge_bins()

    def flush(self) -> None:
        """Have what was taken in among the points."""
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
        """The points of a figure by step; none when there is no such figure."""
        return [point for bin_ in self.bins.get(name, ()) for point in bin_.ends]

    def means(self, name: str) -> list[Point]:
        """The mean of each stretch, at its end."""
        bins = self.bins.get(name, ())
        return [Point(bin_.step, bin_.total / bin_.count if bin_.count else None) for bin_ in bins]

    def _add_bin(self, name: str, steps: list[int], values: list[Any]) -> None:
        try:
            numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
        except ValueError:
            return  # a text
        if name.endswith(SUMMED_ENDING):
            total = Total(self._last_step, steps[-1], float(np.nansum(numbers)))
            self.totals.setdefault(name, []).append(total)
        finite = np.flatnonzero(np.isfinite(numbers))
        if len(finite):
            ends = {int(finite[np.argmin(numbers[finite])]), int(finite[np.argmax(numbers[finite])])}
            points = [Point(steps[index], float(numbers[index])) for index in sorted(ends)]
        else:
            points = [Point(steps[0], None)]
        bin_ = Bin(points, steps[-1], float(numbers[finite].sum()), len(finite))
        self.bins.setdefault(name, []).append(bin_)

    def _merge_bins(self) -> None:
        for name, bins in self.bins.items():
            self.bins[name] = [_merged(pair) for pair in _pairs(bins)]
        for name, totals in self.totals.items():
            self.totals[name] = [
                Total(pair[0].after_step, pair[-1].step, sum(total.seconds for total in pair))
                for pair in _pairs(totals)
            ]
        self._num_bins //= 2
        self.records_per_bin *= 2


def _pairs(values: list[Any]) -> Iterator[list[Any]]:
    return (values[index : index + 2] for index in range(0, len(values), 2))


def _merged(bins: list[Bin]) -> Bin:
    points = [point for bin_ in bins for point in bin_.ends]
    numbers = [(point.value, place) for place, point in enumerate(points) if point.value is not None]
    ends = [points[place] for place in sorted({min(numbers)[1], max(numbers)[1]})] if numbers else points[:1]
    return Bin(ends, bins[-1].step, sum(bin_.total for bin_ in bins), sum(bin_.count for bin_ in bins))


@dataclass
class RunCurves:
    """What the report of a run draws and tells."""

    run_dir: Path
    run_record: Record
    training: DownsampledRecords
    evaluations: dict[str, DownsampledRecords]
    events: list[Record]
    cost: RunCost
    first_logged_at: float | None = None
    last_logged_at: float | None = None

    def part_with(self, name: str) -> DownsampledRecords:
        """The records that have a figure: those of an evaluation tell by the beginning of its name."""
        return self.evaluations.get(name.partition("_")[0], self.training)

    def curve(self, name: str) -> list[Point]:
        """The points of a figure."""
        return self.part_with(name).curve(name)

    def names(self) -> list[str]:
        """All figures there are."""
        return [name for part in (self.training, *self.evaluations.values()) for name in part.bins]

    def tokens_at(self, step: float) -> float | None:
        """The tokens that were trained on until a step, between two records in proportion; None when untold."""
        steps, tokens = self._tokens
        if len(steps) == 1:
            return None
        beyond = max(0, step - steps[-1]) * self.run_record.get("identity", {}).get("global_batch_tokens", 0)
        return round(float(np.interp(step, steps, tokens)) + beyond)

    @cached_property
    def _tokens(self) -> tuple[np.ndarray, np.ndarray]:
        points = [Point(0, 0.0), *(point for point in self.training.curve("tokens") if point.value is not None)]
        return np.array([point.step for point in points]), np.array([point.value for point in points])


def read_curves(run_dir: Path, run_record: Record) -> RunCurves:
    """Read metrics.jsonl once, from beginning to end.

    Raises:
        UserError: when it is not there.
    """
    run = RunCurves(
        run_dir,
        run_record,
        DownsampledRecords(),
        {"eval": DownsampledRecords(), "test": DownsampledRecords()},
        [],
        RunCost(run_record),
    )
    for record in read_records(run_dir):
        _take_in(run, record)
    for thinned in (run.training, *run.evaluations.values()):
        thinned.flush()
    return run


def _take_in(run: RunCurves, record: Record) -> None:
    run.cost.add(record)
    logged_at = record.get("logged_at")
    if logged_at is not None:
        run.first_logged_at = logged_at if run.first_logged_at is None else min(run.first_logged_at, logged_at)
        run.last_logged_at = max(run.last_logged_at or logged_at, logged_at)
    if "event" in record:
        run.events.append(record)
    elif "loss" in record:
        run.training.add(record)
    else:
        for prefix, thinned in run.evaluations.items():
            if f"{prefix}_loss" in record:
                thinned.add(record)
