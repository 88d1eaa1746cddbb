"""What a run has cost, over all its starts: hours, GPU hours, energy."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from pretraining.runs.history import Record, RunHistory

JOULES_PER_KILOWATT_HOUR = 3.6e6
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class RunCost:
    """Of the steps that count: what was trained after the checkpoint that a run went on from is not in the log.

    What was not measured is None.
    """

    hours: float | None
    process_hours: float | None
    kilowatt_hours: float | None


def cost_of(history: RunHistory) -> RunCost:
    """What all starts add up to; each counts its energy anew."""
    starts = list(_starts(history))
    seconds = [(sum(record.get("interval_seconds", 0) for record in records), count) for count, records in starts]
    energies = [[r["energy_joules"] for r in records if "energy_joules" in r] for _, records in starts]
    total = sum(time for time, _ in seconds)
    joules = sum(max(values) for values in energies if values)
    return RunCost(
        hours=total / SECONDS_PER_HOUR if total else None,
        process_hours=sum(time * count for time, count in seconds) / SECONDS_PER_HOUR if total else None,
        kilowatt_hours=joules / JOULES_PER_KILOWATT_HOUR if joules else None,
    )


def _starts(history: RunHistory) -> Iterator[tuple[int, list[Record]]]:
    """The processes of each start, and its training records."""
    usual = history.run_record["hardware"]["num_processes"]
    events = [event for event in history.events if event["event"] == "start" and "logged_at" in event]
    times = [event["logged_at"] for event in events]
    for event, (begin, end) in zip(events, pairwise([*times, float("inf")]), strict=True):
        records = [record for record in history.training if begin <= record.get("logged_at", 0) < end]
        yield event.get("num_processes", usual), records
    if not events:  # of a log that tells no times
        yield usual, history.training
