#!/usr/bin/env python3
"""Measure the start of preprocess.py: small inputs, with and without the cache of compiled functions.

    .venv-bench/bin/python -m benchmarks.preprocess.startup --data_files news.jsonl --tokenizer llama2

The results go into a section of docs/benchmarks/preprocess.md.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.preprocess.arms import our_command
from benchmarks.preprocess.memory import PACKAGES
from benchmarks.preprocess.peers.job import Job
from benchmarks.preprocess.runs import Series, add_run, prepare_job
from benchmarks.preprocess.sized_inputs import sized_inputs
from benchmarks.results import command_line, hardware, spread, table, versions, write_section
from pretraining.cli.arguments.preprocess import SAMPLE_CORPUS, SAMPLE_TOKENIZER
from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe

logger = logging.getLogger("pretraining.benchmarks")

TITLES = ("input", "cache", "seconds", "CPU seconds", "MB/s")
EXPLANATION = """\
Median of {repetitions} runs (the least and the most), the two caches in turns. An empty cache: `XDG_CACHE_HOME` is a
new folder, so loops are compiled if the input is large enough; CPU seconds include that. A filled one: after a run
with `--tokenizer_backend compiled`."""


@dataclass(frozen=True)
class StartupArguments:
    """Flags of this measurement."""

    data_files: Path = flag(SAMPLE_CORPUS, "one JSONL file with a text field, every line readable")
    tokenizer: Path = flag(Path(SAMPLE_TOKENIZER), "tokenizer folder")
    block_length: int = flag(4096, "tokens in a token block")
    input_megabytes: list[int] = flag([1, 30, 300], "sizes of the inputs")
    repetitions: int = flag(3, "runs of each")
    work_dir: Path = flag(Path("build/benchmark"), "folder for inputs and outputs")
    results_dir: Path = flag(Path("docs/benchmarks"), "folder of preprocess.md")


def main(argv: Sequence[str]) -> None:
    """Measure and write the section."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Measurement", StartupArguments)], argv)
    arguments.results_dir.mkdir(parents=True, exist_ok=True)
    job = prepare_job(arguments.data_files, arguments.tokenizer, arguments.block_length, arguments.work_dir)
    path = job.output_dir.parent / "input.jsonl"
    rows = []
    for made in sized_inputs(job.data_file, arguments.input_megabytes, path):
        for cache, series in both_caches(replace(job, data_file=path), arguments.repetitions).items():
            speed = series.megabytes_per_second(made.text_bytes)
            cpu = f"{median(usage.cpu_seconds for usage in series.usages):.1f}" if series.usages else ""
            rows.append([made.title, cache, *([spread(series.seconds), cpu, spread(speed)] if cpu else ["failed"])])
    paragraphs = [
        f"{hardware()}; {versions(PACKAGES)}.",
        command_line("preprocess.startup"),
        table(TITLES, rows),
        EXPLANATION.format(repetitions=arguments.repetitions),
    ]
    write_section(arguments.results_dir / "preprocess.md", "Start", "\n\n".join(paragraphs))


def both_caches(job: Job, repetitions: int) -> dict[str, Series]:
    """Run preprocess.py with an empty and a filled cache, in turns."""
    cache_dir = job.output_dir.parent / "cache"
    found = {"empty": Series(), "filled": Series()}
    for _ in range(repetitions):
        shutil.rmtree(cache_dir, ignore_errors=True)
        for name, series in found.items():
            environment = {"XDG_CACHE_HOME": str(cache_dir)}
            if name == "filled":
                add_run(Series(), [*our_command(job), "--tokenizer_backend", "compiled"], job, environment)
            add_run(series, our_command(job), job, environment)
            logger.info(
                "%s, %s: %s", job.data_file.stat().st_size, name, series.failure or f"{series.seconds[-1]:.1f} s"
            )
    return found


if __name__ == "__main__":
    run_program(main)
