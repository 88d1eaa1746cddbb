#!/usr/bin/env python3
"""Training speed of Llama-2-7B on the GPUs of this machine, setting by setting: docs/benchmarks/gpu.md and gpu.json.

    python3 -m benchmarks.gpu                                   # ten minutes, the most important rows first
    python3 -m benchmarks.gpu --minutes 60                      # resumes with the rows that are not measured yet
    python3 -m benchmarks.gpu --dataset blocks                  # real blocks (of 4,096 tokens) in place of random ids
    python3 -m benchmarks.gpu --small --output small.md         # the same on any machine, with the quickstart's model
    bash benchmarks/gpu/slot.sh WHEELS                          # the first minutes on a new GPU (--slot)

Each row is a separate run of pretrain.py under the deepspeed launcher. A finished row is not run again, a failed one
shows its error and is run again after those that were never tried, and one that was not reached stays "not yet
measured". Without a GPU nothing is run. --slot first runs a small model from start to text, then the most important
rows with fewer steps, a profiled micro step, the decoder, and the tests that need a GPU. Without --slot, rows of fewer
steps are measured again.
"""

import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.measure import LEAVING_SECONDS, find_gpus, is_wanted, machine, measure, seconds_until
from benchmarks.gpu.page import page
from benchmarks.gpu.rows import NUM_SLOT_ROWS, ROWS, SMALL_ROWS, GpuArguments, Row
from benchmarks.gpu.stages import STAGES, Stage, is_done, run_stage
from benchmarks.results import PROJECT_DIR
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe

logger = logging.getLogger("pretraining.benchmarks")

STORED = PROJECT_DIR / "docs/benchmarks/gpu.json"
ROW_MINUTES = 2.5  # with less time left, no further row is started
Found = dict[str, Any]


class Task(NamedTuple):
    """A row or a stage: its minutes, a function of `ends_at` that measures it, and where its results go."""

    name: str
    was_tried: bool
    minutes: float
    work: Callable[..., Found]
    results: Found

    def do(self, *, ends_at: float) -> None:
        """Do it until `ends_at` of the monotonic clock; what was measured before outlasts a failure."""
        figures = self.work(ends_at=ends_at)
        if "failed" not in figures or "failed" in self.results.get(self.name, figures):
            self.results[self.name] = figures


def main(argv: Sequence[str]) -> None:
    """Do what is not done yet, and write the page after each step of it."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Benchmark", GpuArguments)], argv)
    ends_at = time.monotonic() + 60 * arguments.minutes - LEAVING_SECONDS
    end_like_ctrl_c()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    found, gpus = earlier_results(arguments), find_gpus()
    if gpus or arguments.small:
        found["machine"] = machine(gpus, ends_at=ends_at)
        num_left = 0
        for task in tasks(arguments, found, num_gpus=len(gpus)):
            if seconds_until(ends_at) < 60 * task.minutes:
                num_left += 1  # a shorter one may still fit
                continue
            task.do(ends_at=ends_at)
            write(found, arguments)
        if num_left:
            logger.info("no time for %d of them; rerun the same command to resume with what remains", num_left)
    else:
        logger.warning("no GPU here: nothing is run, and what is not measured stays so")
    write(found, arguments, has_results=bool(gpus or arguments.small))
    logger.info("result: %s", arguments.output)


def earlier_results(arguments: GpuArguments) -> Found:
    """What an earlier start has measured, into the same page or else into that of the documentation."""
    places = [arguments.output.with_suffix(".json"), *([] if arguments.small else [STORED])]
    texts = (place.read_text(encoding="utf-8") for place in places if place.is_file())
    return {"rows": {}, "stages": {}, **json.loads(next(texts, "{}"))}


def end_like_ctrl_c() -> None:
    """Kill what runs when this program is ended: it is in a separate session, which gets no signal."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores the second
            signal.signal(number, signal.default_int_handler)


def tasks(arguments: GpuArguments, found: Found, *, num_gpus: int) -> list[Task]:
    """What is not done yet: what was never tried, the most valuable first, then what failed or had fewer steps."""
    rows = list(SMALL_ROWS if arguments.small else ROWS)
    if arguments.slot:
        rows = rows[: 1 if arguments.small else NUM_SLOT_ROWS]
    before, after = (STAGES[:1], STAGES[1:]) if arguments.slot else ((), ())
    missing = [
        *_stage_tasks(before, arguments, found["stages"]),
        *_row_tasks(rows, arguments, found["rows"], num_gpus=num_gpus),
        *_stage_tasks(after, arguments, found["stages"]),
    ]
    return sorted(missing, key=lambda task: task.was_tried)


def _row_tasks(rows: Sequence[Row], arguments: GpuArguments, done: Found, *, num_gpus: int) -> Iterator[Task]:
    for row in rows:
        if is_wanted(row, done, arguments, num_gpus=num_gpus):
            work = partial(measure, row, arguments, num_gpus=max(num_gpus, row.num_gpus))
            yield Task(row.name, row.name in done, row.minutes or ROW_MINUTES, work, done)


def _stage_tasks(stages: Sequence[Stage], arguments: GpuArguments, done: Found) -> Iterator[Task]:
    for stage in stages:
        if arguments.again or not is_done(done.get(stage.name, {})):
            yield Task(stage.name, stage.name in done, stage.minutes, partial(run_stage, stage, arguments), done)


def write(found: Found, arguments: GpuArguments, *, has_results: bool = True) -> None:
    """Write the page, and the results that a later start resumes from."""
    output: Path = arguments.output
    if has_results:
        output.with_suffix(".json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    rows = SMALL_ROWS if arguments.small else ROWS
    output.write_text(page(rows, found, is_small=arguments.small), encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
