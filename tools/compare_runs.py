"""Show where two runs differ: flags, data, versions, machine, and the first difference of their metrics.

    python3 -m tools.compare_runs runs/a runs/b

Losses, gradient norms, evaluations and weights are compared bit for bit; speed, time and paths of the runs are ignored.
As with diff, the exit code is 0 if nothing differs and 1 otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.cli.flags import flag
from pretraining.cli.program import exit_process, run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError
from pretraining.system.escapes import escape_on_terminal

DIFFERENT_EXIT_CODE = 1
PLACES = ("output_dir", "run_name", "resume", "allow_changed", "local_rank")  # the last is set by launchers
DATA = ("data", "tokenizer_sha256")
EQUAL, EQUAL_TO_THE_BIT = "equal", "equal to the bit"
TO_THE_BIT = ("figures", "weights")


@dataclass(frozen=True)
class ComparisonArguments:
    """Flags of tools.compare_runs."""

    run: Path | None = flag(None, "run folder; comes first, without --run")
    other: Path | None = flag(None, "run folder to compare it with; comes next")

    def __post_init__(self) -> None:
        """Check what needs no file."""
        if self.run is None or self.other is None:
            raise UserError("--run, --other: pass two run folders")


def main(argv: Sequence[str]) -> None:
    """Compare them, part by part."""
    groups = [dataclass_group("Comparison", ComparisonArguments)]
    (arguments,) = parse_recipe(__doc__ or "", groups, argv, first=("run", "other"))
    found = {**compared_records(arguments.run, arguments.other), **compared_metrics(arguments.run, arguments.other)}
    for part, lines in found.items():
        for place, line in enumerate(lines or [EQUAL_TO_THE_BIT if part in TO_THE_BIT else EQUAL]):
            sys.stdout.write(f"{'' if place else part:<10} {escape_on_terminal(line, sys.stdout)}\n")
    if any(found.values()):
        exit_process(DIFFERENT_EXIT_CODE)


def compared_records(run_dir: Path, other: Path) -> dict[str, list[str]]:
    """Every difference between the two files run.json, by part."""
    from pretraining.runs.record_file import read_run_record
    from pretraining.runs.run_record import differences

    first, second = (parts_of(read_run_record(folder)) for folder in (run_dir, other))
    return {
        part: [f"{name}: {was} and {now}" for name, was, now in differences(first[part], second[part])]
        for part in first
    }


def parts_of(record: dict[str, Any]) -> dict[str, Any]:
    """The contents of run.json by part."""
    identity = record.get("identity", {})
    return {
        "arguments": {name: value for name, value in record.get("arguments", {}).items() if name not in PLACES},
        "data": {name: identity.get(name) for name in DATA},
        "model": identity.get("model_config"),
        "deepspeed": record.get("ds_config_resolved"),
        "versions": {name: record.get(name) for name in ("python", "packages", "git")},
        "machine": record.get("hardware"),
    }


def compared_metrics(run_dir: Path, other: Path) -> dict[str, list[str]]:
    """The first difference of the logs, and that of the exported models if there are any."""
    from pretraining.runs.compare import difference_of_metrics, difference_of_weights
    from pretraining.runs.run_folder import MODEL_DIR_NAME

    found = {"figures": difference_of_metrics(run_dir, other)}
    models = [folder / MODEL_DIR_NAME for folder in (run_dir, other)]
    if any(model.is_dir() for model in models):
        found["weights"] = difference_of_weights(*models)
    return {part: [difference] if difference else [] for part, difference in found.items()}


if __name__ == "__main__":
    run_program(main)
