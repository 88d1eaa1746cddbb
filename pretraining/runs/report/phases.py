"""The phases of a run in its report: what each reads, and its learning rates.

Separate because facts.py is as long as a module may be.
"""

from collections.abc import Iterator

from pretraining.runs.tracking.metrics_file import Record
from pretraining.system.privacy import hide_path_of_word

# The fields with which a phase begins another schedule.
OF_SCHEDULE = ("lr_scheduler_type", "learning_rate", "min_learning_rate", "warmup_steps", "decay_steps")


def data_sets(flags: Record) -> str:
    """The data sets of --dataset or of a phase, with their shares."""
    dataset = flags.get("dataset") or []
    return " ".join(hide_path_of_word(str(word)) for word in (dataset if isinstance(dataset, list) else [dataset]))


def phase_table(record: Record) -> dict[str, str | None]:
    """Share, data sets and schedule of each phase by name; one without a schedule keeps that before it."""
    table: dict[str, str | None] = {}
    schedule = record.get("schedule", {})
    coming = iter(schedule.get("later", []))
    for number, phase in enumerate(record.get("arguments", {}).get("phases", [])):
        if number and any(phase.get(name) is not None for name in OF_SCHEDULE):
            schedule = next(coming, {})
        shown = [f"{phase.get('share')} of the tokens", data_sets(phase), *_schedule_words(schedule)]
        table[str(phase.get("name"))] = "; ".join(fact for fact in shown if fact)
    return table


def _schedule_words(schedule: Record) -> Iterator[str]:
    """A schedule in words; a constant one has no lowest learning rate."""
    rates = [schedule.get("peak"), None if schedule.get("shape") == "constant" else schedule.get("minimum")]
    known = " to ".join(f"{rate:.2e}" for rate in rates if isinstance(rate, int | float))
    if "shape" in schedule:
        yield f"{schedule['shape']} {known}".rstrip()
    if schedule.get("warmup_steps"):
        yield f"{schedule['warmup_steps']:,} steps of warmup"
