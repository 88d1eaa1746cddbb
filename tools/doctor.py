"""Check whether this machine, or several, are ready for a run, and show how to fix what is not; a minute at most.

    python3 -m tools.doctor                                          # installation, host, disk, Hub, GPUs, their speed
    python3 -m tools.doctor --run_folder_or_disk runs /mnt/blocks    # disks that a run will write to and read from
    python3 -m tools.doctor --json > machine.json
    python3 -m tools.doctor --hostfile hosts --output_dir /shared/runs/news --dataset blocks    # all hosts of a file

Each finding is ok, a warning or a failure, with the value found and a command that fixes it. After a failure the exit
code is 1. Nothing is changed: a file of 256 MB is written into each folder, read and removed. With --hostfile, the
doctor reaches every host by ssh and checks what the hosts have in common; without it, it checks this machine.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretraining.doctor.finding import Check

FAILURE_EXIT_CODE = 1


def main(argv: Sequence[str]) -> None:
    """Run all checks, print each finding as soon as it is found, and end with a verdict."""
    arguments = read_arguments(argv)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # so that `| head` ends it
    from pretraining.cli.program import exit_process
    from pretraining.doctor.finding import Table, as_json
    from pretraining.doctor.runner import run_checks

    checks = choose_checks(arguments)
    started_at, findings = time.monotonic(), []
    table = Table(colors=sys.stdout.isatty() and not os.environ.get("NO_COLOR"))
    for finding in run_checks(checks, arguments.run_folder_or_disk):
        findings.append(finding)
        if not arguments.json:
            write(table.rows(finding))
    seconds = time.monotonic() - started_at
    write(as_json(findings, seconds=seconds) + "\n" if arguments.json else table.verdict(findings, seconds=seconds))
    # Python itself would wait for processes of checks that cannot be killed.
    exit_process(FAILURE_EXIT_CODE if any(finding.status == "failure" for finding in findings) else 0)


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the flags with argparse: the reader of recipes needs a package that may be missing."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tools.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument(
        "--run_folder_or_disk", "--run-folder-or-disk", nargs="+", type=Path, metavar="PATH", default=[Path()],
        help="folders that runs will write to or read from; they do not have to exist yet [.]",
    )  # fmt: skip
    parser.add_argument("--hostfile", type=Path, help="check the hosts of this file, with lines `NAME slots=GPUS`")
    parser.add_argument(
        "--output_dir", "--output-dir", type=Path, default=Path("runs"), metavar="RUN_FOLDER",
        help="with --hostfile: the run folder, which all hosts have to share; it does not have to exist yet [runs]",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", nargs="+", default=[], metavar="BLOCKS",
        help="with --hostfile: block stores, as pretrain.py takes them, which every host has to have",
    )  # fmt: skip
    return parser.parse_args(argv)


def choose_checks(arguments: argparse.Namespace) -> list[Check]:
    """All checks of this machine, or with --hostfile those of the hosts.

    Raises:
        UserError: when the hostfile cannot be read, or a --dataset is not a block store's name.
    """
    from pretraining.doctor.hosts.check import HostsRequest, hosts_check
    from pretraining.doctor.runner import CHECKS
    from pretraining.errors import UserError

    if arguments.hostfile is None:
        if arguments.dataset:
            raise UserError("--dataset: works with --hostfile only; add --hostfile, or use tools.verify")
        return CHECKS
    if arguments.dataset:
        from pretraining.data.mixture import read_dataset_texts

        arguments.dataset = [store for _, store, _ in read_dataset_texts(arguments.dataset)]
    return [hosts_check(HostsRequest(arguments.hostfile, arguments.output_dir, arguments.dataset))]


def write(text: str) -> None:
    """Print without delay; a character that the terminal does not have becomes a question mark."""
    sys.stdout.buffer.write(text.encode(sys.stdout.encoding, errors="replace"))
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - before anything is imported that an older Python cannot read
        sys.exit(f"failure: Python {sys.version.split()[0]} is too old; create the environment with 3.11 or newer")
    from pretraining.cli.program import run_program

    run_program(main)
