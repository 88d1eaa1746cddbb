#!/usr/bin/env python3
"""What pretrain.py adds to a step: against bare DeepSpeed steps on the same model, blocks and ZeRO-3 settings.

    python3 -m benchmarks.overhead --dataset blocks/quickstart --num_processes 2

Steps of both kinds take turns in one run (benchmarks/overhead_run.py); the first are left out. The result goes into
benchmarks/overhead.md. pretrain.py logs every step, with accuracy and figures by source, as it does for its users.
"""

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pretraining.cli.errors import UserError, run_program
from pretraining.cli.flags import flag
from pretraining.cli.recipe import dataclass_group, parse_recipe

logger = logging.getLogger("pretraining.benchmarks")

WARM_UP_STEPS = 5
REPORT = """# What pretrain.py adds to a step

{hardware}; torch {torch}, deepspeed {deepspeed}, transformers {transformers}; `python3 -m benchmarks.overhead`.
{processes} processes, {micro_batch} blocks x {accumulation} micro steps, model {model}, ZeRO-3.
{runs} runs of {steps} pairs of steps, one of pretrain.py and one bare, in turns with the same engine. Milliseconds a
step, median and quartiles, and what pretrain.py takes more, median of the pairs:

| run | bare DeepSpeed | pretrain.py | more |
|---|---|---|---|
{rows}

Over all pairs: **{percent:+.1f} %** ({low:+.1f} to {high:+.1f} %, the 95 % interval of the median). The bare step has
its blocks in memory and logs nothing; pretrain.py reads blocks, logs each step with loss, accuracy, gradient norm,
figures by source and speed, and looks for spikes.
"""


@dataclass(frozen=True)
class OverheadArguments:
    """Flags of this comparison."""

    dataset: Path = flag(Path("blocks/quickstart"), "block store to train on")
    run_recipe: Path = flag(Path("recipes/quickstart/pretrain.yaml"), "recipe whose model and batch are trained")
    num_processes: int = flag(2, "processes of each run")
    num_steps: int = flag(100, "pairs of steps of each run that count")
    num_runs: int = flag(3, "runs, each a fresh start")
    work_dir: Path = flag(Path("runs/overhead"), "folder of the runs, removed at the end")
    output: Path = flag(Path("benchmarks/overhead.md"), "where the result goes")


def main(argv: Sequence[str]) -> None:
    """Run, then compare."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Comparison", OverheadArguments)], argv)
    shutil.rmtree(arguments.work_dir, ignore_errors=True)
    arguments.work_dir.mkdir(parents=True)
    runs = [pairs_of_steps(arguments, arguments.work_dir / f"run-{number}") for number in range(arguments.num_runs)]
    record = json.loads((arguments.work_dir / "run-0/run.json").read_text())
    arguments.output.write_text(report(arguments, runs, record), encoding="utf-8")
    shutil.rmtree(arguments.work_dir)
    logger.info("result: %s", arguments.output)


def pairs_of_steps(arguments: OverheadArguments, run_dir: Path) -> np.ndarray:
    """Seconds of bare steps and of those of pretrain.py after them, of shape [num_steps, 2]."""
    result = arguments.work_dir / "seconds.json"
    flags = ["--recipe", arguments.run_recipe, "--dataset", arguments.dataset, "--output_dir", run_dir]
    flags += ["--max_steps", arguments.num_steps + WARM_UP_STEPS + 1, "--logging_steps", 1]
    flags += ["--eval_strategy", "no", "--save_strategy", "no"]
    launcher = [Path(sys.executable).with_name("deepspeed"), f"--num_gpus={arguments.num_processes}"]
    command = [*launcher, "--module", "benchmarks.overhead_run", result, *flags]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"benchmarks.overhead_run failed: {(done.stdout + done.stderr)[-2000:]}")
    seconds = json.loads(result.read_text())
    pairs = np.array([seconds["bare"], seconds["ours"]]).T[WARM_UP_STEPS:]
    logger.info("%s: pretrain.py takes %+.1f %% more", run_dir.name, _percent(pairs))
    return pairs


def report(arguments: OverheadArguments, runs: list[np.ndarray], record: dict) -> str:
    """The comparison as a page."""
    settings, hardware = record["arguments"], record["hardware"]
    low, high = _interval(np.concatenate(runs))
    return REPORT.format(
        hardware=hardware["gpu"] or f"{os.cpu_count()} CPU cores ({platform.machine()}), no GPU",
        **{name: version(name) for name in ("torch", "deepspeed", "transformers")},
        processes=arguments.num_processes,
        micro_batch=settings["per_device_train_batch_size"],
        accumulation=settings["gradient_accumulation_steps"],
        model=f"{settings['model']}, {'bf16' if settings['bf16'] else 'fp32'}",
        runs=arguments.num_runs,
        steps=arguments.num_steps,
        rows="\n".join(
            f"| {number} | {_spread(pairs[:, 0])} | {_spread(pairs[:, 1])} | {_percent(pairs):+.1f} % |"
            for number, pairs in enumerate(runs, start=1)
        ),
        percent=_percent(np.concatenate(runs)),
        low=low,
        high=high,
    )


def _percent(pairs: np.ndarray) -> float:
    return float(100 * (np.median(pairs[:, 1] / pairs[:, 0]) - 1))


def _interval(pairs: np.ndarray) -> tuple[float, float]:
    """95 % interval of the median, by drawing the pairs again 2,000 times (bootstrap)."""
    draws = np.random.default_rng(0).integers(0, len(pairs), size=(2000, len(pairs)))
    medians = [_percent(pairs[draw]) for draw in draws]
    return float(np.quantile(medians, 0.025)), float(np.quantile(medians, 0.975))


def _spread(seconds: np.ndarray) -> str:
    low, median, high = 1000 * np.quantile(seconds, [0.25, 0.5, 0.75])
    return f"{median:.0f} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    run_program(main)
