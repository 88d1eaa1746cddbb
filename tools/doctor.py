"""Say what could spoil a run on this machine, and how to mend it, in a minute at most.

    python3 -m tools.doctor                                          # installation, host, disk, Hub, GPUs, their speed
    python3 -m tools.doctor --run_folder_or_disk runs /mnt/blocks    # the disks that a run will write to and read from
    python3 -m tools.doctor --json > machine.json

Each finding is ok, a warning or a failure, with the figure seen and a command that mends it; one failure, and the exit
code is 1. Nothing is changed; a file of 256 MB is written into each folder, read and removed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

FAILURE_EXIT_CODE = 1


def main(argv: Sequence[str]) -> None:
    """Run all checks, show each finding as it comes, and end with a verdict."""
    arguments = read_arguments(argv)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it
    from pretraining.cli.program import exit_process
    from pretraining.doctor.checks import CHECKS
    from pretraining.doctor.runner import run_checks
    from pretraining.doctor.table import Table, as_json, num_of

    began_at, findings = time.monotonic(), []
    table = Table(colours=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    for finding in run_checks(CHECKS, arguments.run_folder_or_disk):
        findings.append(finding)
        if not arguments.json:
            say(table.rows(finding))
    seconds = time.monotonic() - began_at
    say(as_json(findings, seconds=seconds) + "\n" if arguments.json else table.verdict(findings, seconds=seconds))
    # At once: Python would wait for processes of checks that cannot be ended.
    exit_process(FAILURE_EXIT_CODE if num_of(findings, "failure") else 0)


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The flags. Recipes have no part here, and their reader needs a package that may be what is missing."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tools.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--run_folder_or_disk", "--run-folder-or-disk", nargs="+", type=Path, metavar="PATH", default=[Path()],
        help="folders that runs will write to or read from; they need not exist yet. [.]",
    )  # fmt: skip
    return parser.parse_args(argv)


def say(text: str) -> None:
    """Print at once; a terminal that has no such character gets a question mark."""
    sys.stdout.buffer.write(text.encode(sys.stdout.encoding, errors="replace"))
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - before anything is imported that an older Python cannot read
        sys.exit(f"failure: Python {sys.version.split()[0]} is too old; make the environment with 3.11 or newer")
    from pretraining.cli.program import run_program

    run_program(main)
