#!/usr/bin/env python3
"""Measure the CPU time of each stage of preprocess.py: reading, parsing, encoding, packing, Parquet, hashing.

    .venv-bench/bin/python -m benchmarks.preprocess.stages --data_files news.jsonl --tokenizer llama2

The results go into a section of docs/benchmarks/preprocess.md.
"""

import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.preprocess.arms import our_command
from benchmarks.preprocess.memory import PACKAGES
from benchmarks.preprocess.peers.job import Job
from benchmarks.preprocess.runs import Series, add_run, prepare_job
from benchmarks.preprocess.sized_inputs import texts_of
from benchmarks.results import MEGABYTE, command_line, hardware, num_cores, spread, table, versions, write_section
from pretraining.cli.arguments.preprocess import SAMPLE_CORPUS, SAMPLE_TOKENIZER
from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError

logger = logging.getLogger("pretraining.benchmarks")

MODULE = "benchmarks.preprocess.stages_run"
TITLES = ("stage", "CPU seconds", "MB/s per core", "% of the time")
MANY_CORES = 32
# What one thread does, whatever the size of the input, and for each file meanwhile; slices divide everything else.
START = ("Python and imports", "load the tokenizer", "assemble")
PER_FILE = "hash the input"
MAX_SHARE = 0.05
EXPLANATION = """\
Median of {repetitions} runs of {text_bytes:,} bytes of text (the least and the most). CPU time of all threads of a
stage, system calls included, without that of other stages it calls; `rest` has threads of libraries. Together
{total:.2f} s of CPU: at most {bound:,.0f} MB/s on {cores} cores.

On {many} cores with as many slices, by arithmetic: {divided:.1f} s of CPU per GB of text divide into {each:.2f} s.
One thread does the start, {start:.2f} s, which is {share:.0%} of the time from {enough:,.0f} GB on. One thread
computes the SHA-256 of each input file meanwhile, {hash_seconds:.2f} s per GB; {num_files} files do not wait for it."""


@dataclass(frozen=True)
class StageArguments:
    """Flags of this measurement."""

    data_files: Path = flag(SAMPLE_CORPUS, "one JSONL file with a text field, every line readable")
    tokenizer: Path = flag(Path(SAMPLE_TOKENIZER), "tokenizer folder")
    block_length: int = flag(4096, "tokens in a token block")
    repetitions: int = flag(3, "runs")
    work_dir: Path = flag(Path("build/benchmark"), "folder for outputs")
    results_dir: Path = flag(Path("docs/benchmarks"), "folder of preprocess.md")


def main(argv: Sequence[str]) -> None:
    """Measure and write the section."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Measurement", StageArguments)], argv)
    arguments.results_dir.mkdir(parents=True, exist_ok=True)
    job = prepare_job(arguments.data_files, arguments.tokenizer, arguments.block_length, arguments.work_dir)
    add_run(Series(), our_command(job), job)  # which compiles the encoder
    runs = [measured_stages(job) for _ in range(arguments.repetitions)]
    text_bytes = sum(len(text.encode()) for text in texts_of(job.data_file))
    paragraphs = [
        f"{hardware()}; {versions(PACKAGES)}.",
        command_line("preprocess.stages"),
        table(TITLES, stage_rows(runs, text_bytes)),
        EXPLANATION.format(repetitions=arguments.repetitions, text_bytes=text_bytes, **arithmetic(runs, text_bytes)),
    ]
    write_section(arguments.results_dir / "preprocess.md", "Stages", "\n\n".join(paragraphs))


def measured_stages(job: Job) -> dict[str, float]:
    """CPU seconds of each stage of one run."""
    result = job.output_dir.parent / "stages.json"
    series = Series()
    add_run(series, [sys.executable, "-m", MODULE, str(result), *our_command(job)[2:]], job)
    if series.failure is not None:
        raise UserError(f"preprocess.py failed: {series.failure}")
    logger.info("stages: %.1f s", series.seconds[-1])
    found: dict[str, float] = json.loads(result.read_text())
    return found


def stage_rows(runs: Sequence[dict[str, float]], text_bytes: int) -> list[list[str]]:
    """A row for each stage, and one for all."""
    middles = {stage: median(run[stage] for run in runs) for stage in runs[0]}
    total = sum(middles.values())
    rows = [
        [
            stage,
            spread([run[stage] for run in runs], 2),
            f"{text_bytes / MEGABYTE / seconds:,.0f}" if seconds > 0.01 and stage not in START else "",
            f"{100 * seconds / total:.0f}",
        ]
        for stage, seconds in middles.items()
    ]
    return [*rows, ["all", f"{total:.2f}", f"{text_bytes / MEGABYTE / total:,.0f}", "100"]]


def arithmetic(runs: Sequence[dict[str, float]], text_bytes: int) -> dict[str, float]:
    """What the stages mean for this machine and for one of many cores."""
    middles = {stage: median(run[stage] for run in runs) for stage in runs[0]}
    total = sum(middles.values())
    gigabytes = text_bytes / 1e9
    start, hash_seconds = sum(middles[stage] for stage in START), middles[PER_FILE] / gigabytes
    divided = (total - start) / gigabytes - hash_seconds
    each = divided / MANY_CORES
    return {
        "total": total,
        "bound": text_bytes / MEGABYTE / total * num_cores(),
        "cores": num_cores(),
        "many": MANY_CORES,
        "divided": divided,
        "each": each,
        "start": start,
        "share": MAX_SHARE,
        "enough": start * (1 - MAX_SHARE) / MAX_SHARE / each,
        "hash_seconds": hash_seconds,
        "num_files": math.ceil(hash_seconds / each),
    }


if __name__ == "__main__":
    run_program(main)
