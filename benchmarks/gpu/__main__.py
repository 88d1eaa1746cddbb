#!/usr/bin/env python3
"""Training speed of Llama-2-7B on the GPUs of this machine, setting by setting: docs/benchmarks/gpu.md and gpu.json.

    python3 -m benchmarks.gpu                                   # ten minutes, the most important rows first
    python3 -m benchmarks.gpu --minutes 60                      # resumes with the rows that are not measured yet
    python3 -m benchmarks.gpu --dataset blocks                  # real blocks (of 4,096 tokens) in place of random ids
    python3 -m benchmarks.gpu --small --output small.md         # the same on any machine, with the quickstart's model
    bash benchmarks/gpu/slot.sh WHEELS                          # the first minutes on a new GPU (--slot)

Each row is a separate run of pretrain.py under the deepspeed launcher. A finished row is not run again, a failed one
shows its error, and one that was not reached stays "not yet measured". Without a GPU nothing is run. --slot first runs
a small model from start to text, then the most important rows with fewer steps, a profiled micro step, the decoder, and
the tests that need a GPU.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.measure import count_gpus, is_wanted, machine, measure
from benchmarks.gpu.page import page
from benchmarks.gpu.rows import NUM_SLOT_ROWS, ROWS, SMALL_ROWS, GpuArguments, Row
from benchmarks.gpu.stages import STAGES, Stage, run_stage
from benchmarks.results import PROJECT_DIR
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe

logger = logging.getLogger("pretraining.benchmarks")

STORED = PROJECT_DIR / "docs/benchmarks/gpu.json"
ROW_MINUTES = 2.5  # with less time left, no further row is started
Found = dict[str, Any]
Task = tuple[float, Callable[[], None]]


def main(argv: Sequence[str]) -> None:
    """Do what is not done yet, and write the page after each step of it."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Benchmark", GpuArguments)], argv)
    started_at = time.monotonic()
    found, num_gpus = earlier_results(arguments), count_gpus()
    if num_gpus or arguments.small:
        found["machine"] = machine(num_gpus)
        for minutes, work in tasks(arguments, found, num_gpus=num_gpus):
            if time.monotonic() - started_at > 60 * (arguments.minutes - minutes):
                logger.info("the time is up; rerun the same command to resume with what remains")
                break
            work()
            write(found, arguments)
    else:
        logger.warning("no GPU here: nothing is run, and what is not measured stays so")
    write(found, arguments, has_results=bool(num_gpus or arguments.small))
    logger.info("result: %s", arguments.output)


def earlier_results(arguments: GpuArguments) -> Found:
    """What an earlier start has measured, into the same page or else into that of the documentation."""
    places = [arguments.output.with_suffix(".json"), *([] if arguments.small else [STORED])]
    texts = (place.read_text(encoding="utf-8") for place in places if place.is_file())
    return {"rows": {}, "stages": {}, **json.loads(next(texts, "{}"))}


def tasks(arguments: GpuArguments, found: Found, *, num_gpus: int) -> Iterator[Task]:
    """What is not done yet, the most valuable first: the minutes that it takes, and a function."""
    rows = list(SMALL_ROWS if arguments.small else ROWS)
    if arguments.slot:
        rows = rows[: 1 if arguments.small else NUM_SLOT_ROWS]
    before, after = (STAGES[:1], STAGES[1:]) if arguments.slot else ((), ())
    for stage in before:
        yield from _stage_task(stage, arguments, found)
    for row in rows:
        if is_wanted(row, found["rows"], arguments, num_gpus=num_gpus):
            gpus = max(num_gpus, row.num_gpus)
            yield row.minutes or ROW_MINUTES, partial(_measure_row, row, arguments, found, num_gpus=gpus)
    for stage in after:
        yield from _stage_task(stage, arguments, found)


def _measure_row(row: Row, arguments: GpuArguments, found: Found, *, num_gpus: int) -> None:
    found["rows"][row.name] = measure(row, arguments, num_gpus=num_gpus)


def _stage_task(stage: Stage, arguments: GpuArguments, found: Found) -> Iterator[Task]:
    if arguments.again or stage.name not in found["stages"]:
        yield stage.minutes, partial(_run_stage, stage, arguments, found)


def _run_stage(stage: Stage, arguments: GpuArguments, found: Found) -> None:
    found["stages"][stage.name] = run_stage(stage, arguments)


def write(found: Found, arguments: GpuArguments, *, has_results: bool = True) -> None:
    """Write the page, and the results that a later start resumes from."""
    output: Path = arguments.output
    output.parent.mkdir(parents=True, exist_ok=True)
    if has_results:
        output.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    rows = SMALL_ROWS if arguments.small else ROWS
    output.write_text(page(rows, found, is_small=arguments.small), encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
