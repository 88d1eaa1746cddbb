#!/usr/bin/env python3
"""What pretrain.py adds to a step: against a bare DeepSpeed loop on the same model, blocks and ZeRO-3 settings.

    python3 -m benchmarks.overhead --dataset blocks/quickstart --num_processes 2

The two take turns, each run a fresh start; the first steps of each run are left out. The result goes into
benchmarks/overhead.md. pretrain.py logs every step, with accuracy and figures by source, as it does for its users.
"""

import dataclasses
import json
import logging
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jsonlines

from pretraining.cli.errors import UserError, run_program
from pretraining.cli.flags import flag
from pretraining.cli.recipe import dataclass_group, parse_recipe

logger = logging.getLogger("pretraining.benchmarks")

WARM_UP_STEPS = 5
REPORT = """# What pretrain.py adds to a step

{hardware}; torch {torch}, deepspeed {deepspeed}, transformers {transformers}. `{command}`: {rounds} rounds in turns,
{steps} steps each after {warm_up} of warm-up; {processes} processes, {micro_batch} blocks x {accumulation} micro steps,
model `{model}`, ZeRO-3. Seconds a step: median of all steps, and the lowest and highest median of a round.

| | seconds a step | lowest round | highest round |
|---|---|---|---|
| bare DeepSpeed loop | {bare[0]:.4f} | {bare[1]:.4f} | {bare[2]:.4f} |
| pretrain.py | {ours[0]:.4f} | {ours[1]:.4f} | {ours[2]:.4f} |

pretrain.py takes {percent:+.1f} % (median of the rounds' ratios; {lowest:+.1f} to {highest:+.1f} %). The bare loop logs
nothing; pretrain.py logs each step with loss, accuracy, gradient norm, figures by source and speed, and looks for
spikes.
"""


@dataclass(frozen=True)
class OverheadArguments:
    """Flags of this comparison."""

    dataset: Path = flag(Path("blocks/quickstart"), "block store to train on")
    recipe: Path = flag(Path("recipes/quickstart/pretrain.yaml"), "recipe whose model and batch are trained")
    num_processes: int = flag(2, "processes of each run")
    num_steps: int = flag(40, "steps of each run that count")
    rounds: int = flag(3, "runs of each")
    work_dir: Path = flag(Path("runs/overhead"), "folder of the runs, removed at the end")
    output: Path = flag(Path("benchmarks/overhead.md"), "where the result goes")


def main(argv: Sequence[str]) -> None:
    """Run both in turn, then compare."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Comparison", OverheadArguments)], argv)
    shutil.rmtree(arguments.work_dir, ignore_errors=True)
    arguments.work_dir.mkdir(parents=True)
    ours, bare = [], []
    for number in range(arguments.rounds):
        run_dir = arguments.work_dir / f"run-{number}"
        ours.append(steps_of_pretrain(arguments, run_dir))
        bare.append(steps_of_bare_loop(arguments, run_dir))
        logger.info(
            "round %d: pretrain.py %.4f s, bare loop %.4f s a step",
            number + 1,
            statistics.median(ours[-1]),
            statistics.median(bare[-1]),
        )
    write_report(arguments, ours, bare, arguments.work_dir / "run-0")
    shutil.rmtree(arguments.work_dir)
    logger.info("result: %s", arguments.output)


def steps_of_pretrain(arguments: OverheadArguments, run_dir: Path) -> list[float]:
    """Seconds of each step, from the speed in its log."""
    flags = ["--recipe", arguments.recipe, "--dataset", arguments.dataset, "--output_dir", run_dir]
    flags += ["--max_steps", arguments.num_steps + WARM_UP_STEPS, "--logging_steps", 1]
    flags += ["--eval_strategy", "no", "--save_strategy", "no"]
    launch(arguments, "pretrain.py", *flags)
    tokens = json.loads((run_dir / "run.json").read_text())["identity"]["global_batch_tokens"]
    with jsonlines.open(run_dir / "metrics.jsonl") as records:
        rates = [record["tokens_per_second_per_gpu"] for record in records if "loss" in record]
    return [tokens / arguments.num_processes / rate for rate in rates[WARM_UP_STEPS:]]


def steps_of_bare_loop(arguments: OverheadArguments, run_dir: Path) -> list[float]:
    """Seconds of each step of the same model and batch, as the run before it was planned."""
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "model_config.json").write_text(json.dumps(record["identity"]["model_config"]))
    settings = record["arguments"]
    micro_batch, accumulation = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
    ds_config = resolved_ds_config(record, arguments.num_processes)
    (run_dir / "ds_config.json").write_text(json.dumps(ds_config))
    words = [run_dir / "model_config.json", arguments.dataset, run_dir / "ds_config.json", run_dir / "seconds.json"]
    num_steps = arguments.num_steps + WARM_UP_STEPS
    launch(arguments, "--module", "benchmarks.bare_loop", *words, micro_batch, accumulation, num_steps)
    return json.loads((run_dir / "seconds.json").read_text())[WARM_UP_STEPS:]


def resolved_ds_config(record: dict, num_processes: int) -> dict:
    """The run's ds_config with what the Trainer filled in for "auto" (transformers, integrations/deepspeed.py)."""
    settings, hidden_size = record["arguments"], record["identity"]["model_config"]["hidden_size"]
    micro_batch, accumulation = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
    config = record["ds_config"]
    config["zero_optimization"] |= {
        "reduce_bucket_size": hidden_size**2,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    config["bf16"]["enabled"], config["fp16"]["enabled"] = settings["bf16"], settings["fp16"]
    return config | {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_batch * accumulation * num_processes,
        "gradient_clipping": settings["max_grad_norm"],
        "zero_allow_untested_optimizer": True,
    }


def launch(arguments: OverheadArguments, *words: object) -> None:
    """Start a program on all processes as users do."""
    deepspeed = Path(sys.executable).with_name("deepspeed")
    command = [deepspeed, f"--num_gpus={arguments.num_processes}", *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(str(word) for word in words[:2])} failed: {(done.stdout + done.stderr)[-2000:]}")


def write_report(arguments: OverheadArguments, ours: list[list[float]], bare: list[list[float]], run_dir: Path) -> None:
    """The comparison as a page."""
    record = json.loads((run_dir / "run.json").read_text())
    pairs = zip(ours, bare, strict=True)
    ratios = sorted(statistics.median(mine) / statistics.median(theirs) for mine, theirs in pairs)
    percents = [100 * (ratio - 1) for ratio in ratios]
    gpu = record["hardware"]["gpu"]
    text = REPORT.format(
        hardware=gpu or f"{record['hardware']['num_cpu_cores']} CPU cores ({platform.machine()}), no GPU",
        **{name: version(name) for name in ("torch", "deepspeed", "transformers")},
        command="python3 -m benchmarks.overhead",
        **{name: value for name, value in dataclasses.asdict(arguments).items() if name == "rounds"},
        steps=arguments.num_steps,
        warm_up=WARM_UP_STEPS,
        processes=arguments.num_processes,
        micro_batch=record["arguments"]["per_device_train_batch_size"],
        accumulation=record["arguments"]["gradient_accumulation_steps"],
        model=f"{record['arguments']['model']}, {'bf16' if record['arguments']['bf16'] else 'fp32'}",
        ours=spread(ours),
        bare=spread(bare),
        percent=statistics.median(percents),
        lowest=percents[0],
        highest=percents[-1],
    )
    arguments.output.write_text(text)


def spread(rounds: list[list[float]]) -> tuple[float, float, float]:
    """Median of all steps, and the lowest and highest median of a round."""
    medians = [statistics.median(steps) for steps in rounds]
    return statistics.median([second for steps in rounds for second in steps]), min(medians), max(medians)


if __name__ == "__main__":
    run_program(main)
