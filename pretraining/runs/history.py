"""What happened in a run, as its folder tells it: run.json and metrics.jsonl, read once for report and card."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonlines

from pretraining.cli.errors import UserError
from pretraining.runs.checkpoints import METRICS_NAME
from pretraining.runs.run_record import read_run_record

Record = dict[str, Any]
SPLIT_KEYS = {"validation": "eval_loss", "test": "test_loss"}
# What is kept of each training record but the last: a million records with every figure would take 4 GB.
KEPT_FIGURES = ("step", "logged_at", "interval_seconds", "energy_joules")


@dataclass(frozen=True)
class RunHistory:
    """The records of a run in their order: of training, with KEPT_FIGURES, of evaluations by split, and events.

    `last` is the newest training record with all its figures, empty when there is none.
    """

    run_dir: Path
    run_record: Record
    last: Record = field(default_factory=dict)
    training: list[Record] = field(default_factory=list)
    evaluations: dict[str, list[Record]] = field(default_factory=lambda: {split: [] for split in SPLIT_KEYS})
    events: list[Record] = field(default_factory=list)


def read_history(run_dir: Path, *, until_step: float = math.inf) -> RunHistory:
    """What had happened in a run at the end of a step; half a last line, which a kill leaves, is left out.

    Raises:
        UserError: when the folder holds no run.
    """
    history = RunHistory(run_dir, read_run_record(run_dir))
    last: Record = {}
    for record in read_records(run_dir):
        if record["step"] > until_step:
            continue
        if "event" in record:
            history.events.append(record)
        elif "loss" in record:
            last = record
            history.training.append({name: record[name] for name in KEPT_FIGURES if name in record})
        for split, key in SPLIT_KEYS.items():
            if key in record:
                history.evaluations[split].append(record)
    return replace(history, last=last)


def read_records(run_dir: Path) -> Iterator[Record]:
    """The records of metrics.jsonl one by one, which takes no more memory for a long run.

    Raises:
        UserError: when there are none to read.
    """
    try:
        with jsonlines.open(run_dir / METRICS_NAME) as reader:
            yield from reader.iter(type=dict, skip_invalid=True)
    except OSError as error:
        raise UserError(f"{run_dir / METRICS_NAME}: cannot be read ({error.strerror}); give a run folder") from None
