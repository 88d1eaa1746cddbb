#!/usr/bin/env python3
"""Cost of finding duplicates: the first pass of preprocess.py over the input, and the grouping of its keys.

    python3 -m benchmarks.duplicates --data_files news.jsonl

The texts of the file are repeated up to the wanted size, each with a different number in front, so all of them are
near-duplicates: the worst case for the grouping. Every run is a fresh process, and the arms take turns. Results:
docs/benchmarks/duplicates.md.
"""

import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.preprocess.sized_inputs import sized_inputs
from benchmarks.results import MEGABYTE, PROJECT_DIR, command_line, hardware, spread, table, versions, write_section
from pretraining.cli.arguments.preprocess import SAMPLE_CORPUS
from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe

logger = logging.getLogger("pretraining.benchmarks")

MAX_PYTHON_MEGABYTES = 30  # Python takes ten seconds for that


@dataclass(frozen=True)
class DuplicatesArguments:
    """Flags of this measurement."""

    data_files: Path = flag(SAMPLE_CORPUS, "JSONL file whose texts are repeated")
    megabytes: int = flag(300, "size of the input; 30 MB at most where Python and datasketch compute the keys")
    num_threads: list[int] = flag([1, 2, 4], "threads, one arm for each")
    repetitions: int = flag(3, "runs of each arm")
    output: Path = flag(Path("docs/benchmarks/duplicates.md"), "page to write")


@dataclass(frozen=True)
class Arm:
    """One way to compute the keys."""

    title: str
    way: str
    num_threads: int
    megabytes: int


def main(argv: Sequence[str]) -> None:
    """Alternate the arms, and write the page."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Measurement", DuplicatesArguments)], argv)
    small = min(MAX_PYTHON_MEGABYTES, arguments.megabytes)
    arms = [
        Arm(f"{title}, {number} threads", way, number, size)
        for title, way, size in (
            ("near and exact, compiled", "compiled", arguments.megabytes),
            ("near and exact, Python and datasketch", "python", small),
            ("exact only, compiled", "exact-compiled", arguments.megabytes),
            ("exact only, Python", "exact-python", arguments.megabytes),
        )
        for number in arguments.num_threads
    ]
    found: dict[Arm, list[dict[str, float]]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as folder:
        inputs = {size: Path(folder) / f"{size}.jsonl" for size in {small, arguments.megabytes}}
        for size, path in inputs.items():
            next(sized_inputs(arguments.data_files, [size], path))
        for number in range(1, arguments.repetitions + 1):
            for arm in arms:
                logger.info("run %d/%d: %s", number, arguments.repetitions, arm.title)
                found[arm].append(run(arm, inputs[arm.megabytes]))
    write_section(arguments.output, "Finding duplicates", page(found))
    logger.info("result: %s", arguments.output)


def run(arm: Arm, path: Path) -> dict[str, float]:
    """Seconds of one run by part, in a new process."""
    words = [sys.executable, "-m", "benchmarks.duplicates_run", arm.way, str(arm.num_threads), str(path)]
    done = subprocess.run(words, cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def page(found: dict[Arm, list[dict[str, float]]]) -> str:
    """The command, the machine and the table."""
    rows = []
    for arm, runs in found.items():
        speeds = [[arm.megabytes / each[part] for each in runs] for part in ("wall_seconds", "cpu_seconds")]
        group = [1e6 * each["group_seconds"] / each["num_documents"] for each in runs]
        start = [each["start_seconds"] for each in runs]
        peak = [each["peak_bytes"] / MEGABYTE for each in runs]
        rows.append([arm.title, *map(spread, speeds), spread(start, 2), spread(group, 2), spread(peak, 0)])
    titles = ["keys", "MB/s", "MB/s per core used", "start-up, s", "grouping, us per document", "memory, MB"]
    return "\n\n".join(
        [
            f"{hardware()}. {versions(['numpy', 'numba', 'datasketch'])}.",
            command_line("duplicates"),
            "MB/s of the JSONL file without the start-up: reading, parsing, and computing keys. Compiled loops were "
            "cached. Start-up is the import of datasketch and the loading of the loops.",
            table(titles, rows),
        ]
    )


if __name__ == "__main__":
    run_program(main)
