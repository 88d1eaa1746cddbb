#!/usr/bin/env python3
"""Measure preprocess.py alone: memory and speed as the input grows, with one huge line, and with more workers.

    .venv-bench/bin/python -m benchmarks.preprocess.memory --data_files news.jsonl --tokenizer llama2

The results go into sections of docs/benchmarks/preprocess.md.
"""

import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.preprocess.arms import OURS, checkout, our_command
from benchmarks.preprocess.peers.job import Job
from benchmarks.preprocess.runs import Series, add_run, prepare_job
from benchmarks.preprocess.sized_inputs import huge_line, sized_inputs, texts_of
from benchmarks.results import PROJECT_DIR, command_line, hardware, spread, table, versions, write_section
from pretraining.cli.arguments.preprocess import SAMPLE_CORPUS, SAMPLE_TOKENIZER
from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe

logger = logging.getLogger("pretraining.benchmarks")

PACKAGES = ("tokenizers", "fastokens", "pyarrow")
TITLES = ("seconds", "MB/s", "peak memory, MB")
LINE_LIMIT_FLAG = "--max_document_bytes"
WORKERS_FLAG = "--num_workers"


@dataclass(frozen=True)
class MemoryArguments:
    """Flags of this measurement."""

    data_files: Path = flag(SAMPLE_CORPUS, "one JSONL file with a text field, every line readable")
    tokenizer: Path = flag(Path(SAMPLE_TOKENIZER), "tokenizer folder")
    block_length: int = flag(4096, "tokens in a token block")
    input_megabytes: list[int] = flag([30, 100, 300, 1000], "sizes of the inputs")
    line_megabytes: int = flag(200, "size of the huge line")
    worker_counts: list[int] = flag([1, 2, 4], f"values of {WORKERS_FLAG}, over the file as it is")
    process_counts: list[int] = flag([1, 2, 4], "processes that share eight slices of the file")
    before: str | None = flag(None, "commit whose preprocess.py takes turns with this one as the input grows")
    repetitions: int = flag(3, "runs of each")
    work_dir: Path = flag(Path("build/benchmark"), "folder for inputs and outputs")
    results_dir: Path = flag(Path("docs/benchmarks"), "folder of preprocess.md")


def main(argv: Sequence[str]) -> None:
    """Measure and write the sections."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Measurement", MemoryArguments)], argv)
    arguments.results_dir.mkdir(parents=True, exist_ok=True)
    job = prepare_job(arguments.data_files, arguments.tokenizer, arguments.block_length, arguments.work_dir)
    place = f"{hardware()}; {versions(PACKAGES)}.\n\n{command_line('preprocess.memory')}"
    note = f"Median of {arguments.repetitions} runs (the least and the most), measured as above."
    for title, section in (("As the input grows", input_sizes), ("Workers", workers), ("Processes", processes)):
        text = f"{place}\n\n{section(arguments, job)}\n\n{note}"
        write_section(arguments.results_dir / "preprocess.md", title, text)


def input_sizes(arguments: MemoryArguments, job: Job) -> str:
    """Table over growing inputs and one huge line; with --before also of the earlier version."""
    path = job.output_dir.parent / "input.jsonl"
    sized_job = replace(job, data_file=path)
    programs = [Path(OURS)]
    if arguments.before is not None:
        programs.append(checkout(arguments.before, job.output_dir.parent) / OURS)
    rows = []
    for made in sized_inputs(job.data_file, arguments.input_megabytes, path):
        runs = take_turns(sized_job, [our_command(sized_job, program) for program in programs], arguments.repetitions)
        rows.append([made.title, f"{made.num_documents:,}", *figures(runs[0], made.text_bytes), *ratios(*runs)])
    made = huge_line(job.data_file, arguments.line_megabytes, path)
    flags = [LINE_LIMIT_FLAG, str(path.stat().st_size)] if LINE_LIMIT_FLAG in our_flags() else []
    commands = [[*our_command(sized_job, program), *flags] for program in programs]
    runs = take_turns(sized_job, commands, arguments.repetitions)
    rows.append([" ".join([made.title, *flags[:1]]), "1", *figures(runs[0], made.text_bytes), *ratios(*runs)])
    path.unlink()
    return table(["input", "documents", *TITLES, *ratio_titles(arguments.before)], rows)


def ratio_titles(before: str | None) -> list[str]:
    """The titles of `ratios`."""
    return [] if before is None else [f"seconds of {before}", "times as long", f"peak memory of {before}, MB"]


def ratios(ours: Series, before: Series | None = None) -> list[str]:
    """The time of the earlier version, as a multiple of ours round by round, and its memory."""
    if before is None:
        return []
    if before.failure is not None or ours.failure is not None:
        return [f"failed: {before.failure}", "", ""]
    each = [theirs / own for theirs, own in zip(before.seconds, ours.seconds, strict=True)]
    return [spread(before.seconds), spread(each, 2), spread(before.peak_megabytes, 0)]


def workers(arguments: MemoryArguments, job: Job) -> str:
    """Table over the number of workers."""
    if WORKERS_FLAG not in our_flags():
        return f"Not run: preprocess.py has no {WORKERS_FLAG}."
    text_bytes = sum(len(text.encode()) for text in texts_of(job.data_file))
    numbers = [str(number) for number in arguments.worker_counts]
    runs = take_turns(job, [[*our_command(job), WORKERS_FLAG, number] for number in numbers], arguments.repetitions)
    rows = [[number, *figures(series, text_bytes)] for number, series in zip(numbers, runs, strict=True)]
    return f"Input: `{job.data_file.name}`, {text_bytes:,} bytes of text.\n\n" + table(["workers", *TITLES], rows)


def processes(arguments: MemoryArguments, job: Job) -> str:
    """Table over the number of processes, two workers each."""
    text_bytes = sum(len(text.encode()) for text in texts_of(job.data_file))
    flags = [["--num_slices", "8", WORKERS_FLAG, str(2 * number)] for number in arguments.process_counts]
    runs = take_turns(job, [[*our_command(job), *each] for each in flags], arguments.repetitions)
    rows = [
        [str(number), *figures(series, text_bytes), f"{median(usage.cpu_seconds for usage in series.usages):.1f}"]
        for number, series in zip(arguments.process_counts, runs, strict=True)
    ]
    title = f"Input: `{job.data_file.name}`, {text_bytes:,} bytes of text in 8 slices, two workers per process.\n\n"
    return title + table(["processes", *TITLES, "CPU seconds"], rows)


def our_flags() -> set[str]:
    """The flags of preprocess.py."""
    command = [sys.executable, "preprocess.py", "--help"]
    done = subprocess.run(command, cwd=PROJECT_DIR, capture_output=True, text=True, check=True)
    return {word for word in done.stdout.split() if word.startswith("--")}


def take_turns(job: Job, commands: Sequence[Sequence[str]], repetitions: int) -> list[Series]:
    """Run each of the commands, one after the other."""
    runs = [Series() for _ in commands]
    for _ in range(repetitions):
        for command, series in zip(commands, runs, strict=True):
            add_run(series, command, job)
            outcome = series.failure or f"{series.seconds[-1]:.1f} s"
            logger.info("%s bytes, %s: %s", f"{job.data_file.stat().st_size:,}", command[1], outcome)
    return runs


def figures(series: Series, text_bytes: int) -> list[str]:
    """The cells of `TITLES`."""
    if series.failure is not None:
        return [f"failed: {series.failure}", "", ""]
    speed, memory = series.megabytes_per_second(text_bytes), series.peak_megabytes
    return [spread(series.seconds), spread(speed), spread(memory, 0)]


if __name__ == "__main__":
    run_program(main)
