"""Write the report of a run, or compare several runs in one page.

    python3 -m tools.report runs/llama2_7b                                    # report.html and curves.png in its folder
    python3 -m tools.report runs/a runs/b runs/c --output comparison.html     # several runs in one page

The page is self-contained and opens without a network. pretrain.py also writes it at each evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.flags import check_all, flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe

logger = logging.getLogger("pretraining.report")


@dataclass(frozen=True)
class ReportArguments:
    """Flags of tools.report."""

    runs: list[Path] = flag([], "run folders; come first, without --runs")
    output: Path | None = flag(None, "file of the page; by default report.html in the folder of the run")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        check_all(
            {
                "--runs: pass a run folder": bool(self.runs),
                "--output: pass a file for the page of several runs, e.g. comparison.html": (
                    len(self.runs) < 2 or self.output is not None
                ),
            }
        )


def main(argv: Sequence[str]) -> None:
    """Write the page."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Report", ReportArguments)], argv, first=["runs"])
    from pretraining.runs.report.report import write_comparison, write_report

    if arguments.output is None:
        (run_dir,) = arguments.runs
        write_report(run_dir)
        logger.info("report: %s", run_dir / "report.html")
    else:
        write_comparison(arguments.runs, arguments.output)
        logger.info("report: %s", arguments.output)


if __name__ == "__main__":
    run_program(main)
