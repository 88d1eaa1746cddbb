#!/usr/bin/env python3
"""Compare preprocess.py with other programs that make token blocks of a JSONL file: time, memory, tokens kept.

    make bench                                              # the sample corpus: it shows that all works, not more
    make bench BENCH_FLAGS="--data_files news.jsonl --tokenizer llama2 --megatron_dir ../Megatron-LM"

Every run is a fresh process, timed from start to exit. The arms take turns, so that a slow minute of the machine hits
them all. What they wrote is counted id by id. Results: docs/benchmarks/preprocess.md and preprocess.svg.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from benchmarks.preprocess.arms import OURS, ArmResult, BenchmarkArguments, arms, checkout, chosen
from benchmarks.preprocess.peers.job import Job
from benchmarks.preprocess.report import report
from benchmarks.preprocess.runs import add_run, prepare_job
from benchmarks.preprocess.token_counts import InputCounts, compare, count_input
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError

logger = logging.getLogger("pretraining.benchmarks")

TRIAL_DOCUMENTS = 100
TRIAL_RUNS = 2  # the first reads its libraries from the disk


def main(argv: Sequence[str]) -> None:
    """Try each program on a few documents, then alternate all of them, and write the results."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Comparison", BenchmarkArguments)], argv)
    arguments.results_dir.mkdir(parents=True, exist_ok=True)
    job = prepare_job(arguments.data_files, arguments.tokenizer, arguments.block_length, arguments.work_dir)
    write_parts(job)
    logger.info("counting the tokens of %s", job.data_file)
    counts = count_input(job.data_file, job.tokenizer)
    before_dir = None if arguments.before is None else checkout(arguments.before, job.output_dir.parent)
    found = chosen(arms(arguments.megatron_dir, before_dir), arguments.arms)
    results = [ArmResult(arm) for arm in found]
    run_trials(results, job)
    check_ours(results[0])
    for number in range(1, arguments.repetitions + 1):
        run_round(results, job, counts, f"run {number}/{arguments.repetitions}")
        check_ours(results[0])
    report(arguments, results, counts, TRIAL_DOCUMENTS)


def write_parts(job: Job) -> None:
    """The lines of the input in as many files as there are workers, of about the same size."""
    job.parts_dir.mkdir(parents=True)
    part_bytes = job.data_file.stat().st_size / job.num_workers
    with job.data_file.open("rb") as lines:
        for number in range(job.num_workers):
            with (job.parts_dir / f"{number:04}.jsonl").open("wb") as part:
                while lines.tell() < part_bytes * (number + 1) and (line := lines.readline()):
                    part.write(line)


def run_trials(results: Sequence[ArmResult], job: Job) -> None:
    """Run each program on the first documents: its start-up time, and whether it can run here."""
    trial_dir = job.output_dir.parent / "trial"
    trial = replace(job, data_file=trial_dir / "input.jsonl", parts_dir=trial_dir / "parts")
    trial_dir.mkdir()
    with job.data_file.open("rb") as lines:
        trial.data_file.write_bytes(b"".join(islice(lines, TRIAL_DOCUMENTS)))
    write_parts(trial)
    for result in results:
        logger.info("trial: %s", result.arm.name)
        for _ in range(TRIAL_RUNS):
            add_run(result.trial, result.arm.command(trial), trial)
        result.series.failure = result.trial.failure


def check_ours(ours: ArmResult) -> None:
    """End here if there is nothing to compare the others with."""
    if ours.series.failure is not None:
        raise UserError(f"{OURS} failed: {ours.series.failure}")


def run_round(results: Sequence[ArmResult], job: Job, counts: InputCounts, title: str) -> None:
    """Run each program once; the first time, count its tokens."""
    for result in results:
        add_run(result.series, result.arm.command(job), job)
        if result.series.failure is None:
            logger.info("%s: %s %.1f s", title, result.arm.name, result.series.seconds[-1])
            result.counts = result.counts or compare(job.output_dir, counts)


if __name__ == "__main__":
    run_program(main)
