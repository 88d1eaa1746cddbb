"""What happened in a run, as its folder tells it: run.json and metrics.jsonl, read once for report and card."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jsonlines

from pretraining.cli.errors import UserError
from pretraining.runs.checkpoints import METRICS_NAME
from pretraining.runs.run_record import read_run_record

Record = dict[str, Any]


@dataclass(frozen=True)
class RunHistory:
    """The records of a run in their order: of training, of evaluations by split, and events."""

    run_dir: Path
    run_record: Record
    training: list[Record]
    evaluations: dict[str, list[Record]]
    events: list[Record]

    @property
    def last(self) -> Record:
        """The newest training record, empty when there is none."""
        return self.training[-1] if self.training else {}

    def until(self, step: int) -> "RunHistory":
        """What had happened at the end of a step."""

        def kept(records: list[Record]) -> list[Record]:
            return [record for record in records if record["step"] <= step]

        evaluations = {split: kept(records) for split, records in self.evaluations.items()}
        return replace(self, training=kept(self.training), evaluations=evaluations, events=kept(self.events))


def read_history(run_dir: Path) -> RunHistory:
    """The history of a run folder; half a last line, which a kill leaves, is left out.

    Raises:
        UserError: when the folder holds no run.
    """
    run_record = read_run_record(run_dir)
    records = list(read_records(run_dir))
    return RunHistory(
        run_dir=run_dir,
        run_record=run_record,
        training=[record for record in records if "loss" in record and "event" not in record],
        evaluations={
            split: [record for record in records if f"{prefix}_loss" in record]
            for split, prefix in (("validation", "eval"), ("test", "test"))
        },
        events=[record for record in records if "event" in record],
    )


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
