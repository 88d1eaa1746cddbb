"""What happened in a run, as its folder tells it: run.json and metrics.jsonl, read once for report and card."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pretraining.errors import UserError
from pretraining.runs.cost import RunCost
from pretraining.runs.record_file import read_run_record
from pretraining.runs.run_folder import METRICS_NAME
from pretraining.runs.tracking.metrics_file import Record, read_log

SPLIT_KEYS = {"validation": "eval_loss", "test": "test_loss"}


@dataclass(frozen=True)
class RunHistory:
    """The newest training record, empty when there is none, evaluations by split, events, and what it all cost.

    A million training records would take 4 GB.
    """

    run_dir: Path
    run_record: Record
    cost: RunCost
    last: Record = field(default_factory=dict)
    evaluations: dict[str, list[Record]] = field(default_factory=lambda: {split: [] for split in SPLIT_KEYS})
    events: list[Record] = field(default_factory=list)


def read_history(run_dir: Path, *, until_step: float = math.inf) -> RunHistory:
    """What had happened in a run at the end of a step; damaged lines, as a kill can leave at the end, are skipped.

    Raises:
        UserError: when the folder holds no run.
    """
    run_record = read_run_record(run_dir)
    history = RunHistory(run_dir, run_record, RunCost(run_record))
    last: Record = {}
    for record in read_records(run_dir):
        if record["step"] > until_step:
            continue
        history.cost.add(record)
        if "event" in record:
            history.events.append(record)
        elif "loss" in record:
            last = record
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
        yield from read_log(run_dir / METRICS_NAME)
    except OSError as error:
        raise UserError(f"{run_dir / METRICS_NAME}: cannot be read ({error.strerror}); give a run folder") from None
