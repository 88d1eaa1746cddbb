#!/usr/bin/env python3
"""The overhead of pretrain.py per step, compared with bare DeepSpeed on the same model, blocks and ZeRO-3 settings.

    python3 -m benchmarks.overhead --dataset blocks/quickstart --num_processes 2

Also compared with plain PyTorch and the plain Trainer, each a separate program (benchmarks/peers.py), and with steps
that log only losses and speed. Steps of both kinds alternate in one run (benchmarks/overhead_run.py), after a
warm-up. pretrain.py logs every step, with accuracy and metrics by source. Results: docs/benchmarks/overhead.md.
"""

import json
import logging
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.peers import PACKAGES, compare_with_peers
from benchmarks.results import command_line, hardware, versions, write_section
from pretraining.cli.flags import flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError
from pretraining.system.launchers import DEEPSPEED

logger = logging.getLogger("pretraining.benchmarks")

WARM_UP_STEPS = 5
SOURCE = """{hardware}; {versions}.

{command}

{processes} processes, {micro_batch} blocks x {accumulation} micro steps, model {model}, ZeRO-3.
{runs} runs of {steps} pairs of steps, one step of either kind, in turns with the same engine.
Milliseconds per step, median and quartiles, and the overhead of pretrain.py, median of the pairs.

"""
COMPARISON = """\
| run | {other} | pretrain.py | more |
|---|---|---|---|
{rows}

Over all pairs: **{percent:+.1f} %** ({low:+.1f} to {high:+.1f} %, the 95 % interval of the median). {explained}
"""


@dataclass(frozen=True)
class Comparison:
    """Two kinds of steps that alternate in benchmarks.overhead_run; `key` is its KIND and the value of --only."""

    key: str
    title: str
    other: str
    explained: str


COMPARISONS = (
    Comparison(
        "engine",
        "Against bare DeepSpeed",
        "bare DeepSpeed",
        "The bare step has its\nblocks in memory, the loss of transformers, and logs nothing. pretrain.py reads blocks,"
        " computes the loss in\nthe recipe's tiles, logs each step, and detects spikes.",
    ),
    Comparison(
        "metrics",
        "Against fewer metrics",
        "fewer metrics",
        "Omitted are the\ntime breakdown, memory, utilization, power and energy, with their all-gather; losses "
        "and speed are\nlogged in both kinds. Without a GPU the time is CPU time of the first process, which\n"
        "writes the log.",
    ),
)


@dataclass(frozen=True)
class OverheadArguments:
    """Flags of this comparison."""

    dataset: Path = flag(Path("blocks/quickstart"), "block store to train on")
    run_recipe: Path = flag(Path("recipes/quickstart/pretrain.yaml"), "recipe whose model and batch are trained")
    num_processes: int = flag(2, "processes of each run")
    num_steps: int = flag(100, "pairs of steps of each run that count")
    num_runs: int = flag(3, "runs of each comparison, each a fresh start")
    num_rounds: int = flag(20, "rounds of turns of each size and precision beside plain PyTorch and the Trainer")
    only: Literal["peers", "engine", "metrics"] | None = flag(None, "measure only one section of the page")
    work_dir: Path = flag(Path("runs/overhead"), "folder of the runs, removed at the end")
    output: Path = flag(Path("docs/benchmarks/overhead.md"), "page to write")


def main(argv: Sequence[str]) -> None:
    """Run, then compare."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Comparison", OverheadArguments)], argv)
    shutil.rmtree(arguments.work_dir, ignore_errors=True)
    arguments.work_dir.mkdir(parents=True)
    if arguments.only in ("peers", None):
        for title, text in compare_with_peers(num_rounds=arguments.num_rounds):
            write_section(arguments.output, title, text)
    for comparison in COMPARISONS:
        if arguments.only in (comparison.key, None):
            write_section(arguments.output, comparison.title, compare(arguments, comparison))
    shutil.rmtree(arguments.work_dir)
    logger.info("result: %s", arguments.output)


def pairs_of_steps(arguments: OverheadArguments, kind: str, run_dir: Path) -> np.ndarray:
    """Seconds of the other steps and of the steps of pretrain.py next to them, of shape [num_steps, 2]."""
    shutil.rmtree(run_dir, ignore_errors=True)
    result = arguments.work_dir / "seconds.json"
    flags = ["--recipe", arguments.run_recipe, "--dataset", arguments.dataset, "--output_dir", run_dir]
    steps_per_pair = 1 if kind == "engine" else 2  # bare steps are not steps of the run
    num_steps = steps_per_pair * (arguments.num_steps + WARM_UP_STEPS) + 2
    flags += ["--max_steps", num_steps, "--logging_steps", 1]
    flags += ["--eval_strategy", "no", "--save_strategy", "no"]
    launcher = [*DEEPSPEED, f"--num_gpus={arguments.num_processes}"]
    command = [*launcher, "--module", "benchmarks.overhead_run", result, kind, *flags]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"benchmarks.overhead_run {kind} failed: {(done.stdout + done.stderr)[-2000:]}")
    seconds = json.loads(result.read_text())
    pairs = np.array([seconds["bare"], seconds["ours"]]).T[WARM_UP_STEPS:]
    logger.info("%s, %s: pretrain.py takes %+.1f %% more", kind, run_dir.name, _percent(pairs))
    return pairs


def compare(arguments: OverheadArguments, comparison: Comparison) -> str:
    """Run a comparison and return the text of its section."""
    folders = [arguments.work_dir / f"run-{number}" for number in range(arguments.num_runs)]
    runs = [pairs_of_steps(arguments, comparison.key, folder) for folder in folders]
    low, high = _interval(np.concatenate(runs))
    record = json.loads((folders[0] / "run.json").read_text())
    return source(arguments, record) + COMPARISON.format(
        **vars(comparison),
        rows="\n".join(
            f"| {number} | {_spread(pairs[:, 0])} | {_spread(pairs[:, 1])} | {_percent(pairs):+.1f} % |"
            for number, pairs in enumerate(runs, start=1)
        ),
        percent=_percent(np.concatenate(runs)),
        low=low,
        high=high,
    )


def source(arguments: OverheadArguments, record: dict) -> str:
    """Hardware, versions and settings of the runs."""
    settings = record["arguments"]
    return SOURCE.format(
        hardware=record["hardware"]["gpu"] or hardware(),
        versions=versions(PACKAGES),
        command=command_line("overhead"),
        processes=arguments.num_processes,
        micro_batch=settings["per_device_train_batch_size"],
        accumulation=settings["gradient_accumulation_steps"],
        model=f"{settings['model']}, {'bf16' if settings['bf16'] else 'fp32'}",
        runs=arguments.num_runs,
        steps=arguments.num_steps,
    )


def _percent(pairs: np.ndarray) -> float:
    return float(100 * (np.median(pairs[:, 1] / pairs[:, 0]) - 1))


def _interval(pairs: np.ndarray) -> tuple[float, float]:
    """95 % interval of the median, by bootstrap with 2,000 samples of the pairs."""
    draws = np.random.default_rng(0).integers(0, len(pairs), size=(2000, len(pairs)))
    medians = [_percent(pairs[draw]) for draw in draws]
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def _spread(seconds: np.ndarray) -> str:
    low, median, high = 1000 * np.quantile(seconds, [0.25, 0.5, 0.75])
    return f"{median:.0f} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    run_program(main)
