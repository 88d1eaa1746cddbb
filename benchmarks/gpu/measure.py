"""Measure the rows: each is a separate run of pretrain.py under the deepspeed launcher."""

import importlib.util
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import SHORT, SLOT_STEPS, GpuArguments, Row
from benchmarks.results import PROJECT_DIR, hardware, versions
from pretraining.runs.history import read_records
from pretraining.system.host import available_host_bytes
from pretraining.system.launchers import DEEPSPEED

logger = logging.getLogger("pretraining.benchmarks")

PACKAGES = ("torch", "deepspeed", "transformers", "accelerate", "triton", "liger-kernel", "flash-attn", "torchao")
SPEEDS = "from pretraining.doctor.speed import speed\nfor it in speed([]): print(f'{it.name}: {it.figure}')"
LEAVING_SECONDS = 15  # in which the processes of a run see that its launcher is gone, and give the GPUs free


def count_gpus() -> int:
    """GPUs that torch sees, queried in a separate process, which frees the memory of CUDA."""
    words = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def machine(num_gpus: int) -> dict[str, Any]:
    """Hardware and versions, and the speed of a plain matrix multiplication."""
    words = [sys.executable, "-c", SPEEDS]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=PROJECT_DIR)
    speeds = done.stdout.splitlines() if done.returncode == 0 else [f"Speed not measured: {done.stderr[-200:]}"]
    return {"hardware": hardware(), "num_gpus": num_gpus, "versions": versions(PACKAGES), "speeds": speeds}


def is_wanted(row: Row, done: dict[str, Any], arguments: GpuArguments, *, num_gpus: int) -> bool:
    """Whether a row can be measured here and is not measured yet."""
    if row.package is not None and importlib.util.find_spec(row.package) is None:
        logger.info("%s: %s is not installed", row.name, row.package)
        return False
    if row.host_gigabytes > available_host_bytes() / 1e9:
        logger.info("%s: needs %d GB of host memory", row.name, row.host_gigabytes)
        return False
    return (arguments.small or num_gpus >= row.num_gpus) and (arguments.again or row.name not in done)


def measure(row: Row, arguments: GpuArguments, *, num_gpus: int) -> dict[str, Any]:
    """The metrics of one run, or its error."""
    logger.info("%s ...", row.name)
    with tempfile.TemporaryDirectory() as folder:
        command = command_of(row, arguments, Path(folder), num_gpus=num_gpus)
        environment = {**os.environ, **row.environment}
        started_at, minutes = time.monotonic(), row.minutes or arguments.row_minutes
        log = Path(folder) / "log"
        code = run_logged(command, log, environment, seconds=60 * minutes)
        figures = figures_of(Path(folder) / "run", log.read_text(errors="replace"), code)
        figures["seconds"] = time.monotonic() - started_at
    figures["command"] = format_command(row, command, folder)
    logger.info(
        "%s: %s", row.name, figures.get("failed") or f"{figures['tokens_per_second_per_gpu']:,.0f} tokens/s/GPU"
    )
    return figures


def run_logged(command: Sequence[object], log: Path, environment: Mapping[str, str], *, seconds: float) -> int:
    """Run a command with its output in a file, and kill it after this time; its exit code."""
    with log.open("a") as output:
        words = [str(word) for word in command]
        run = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=PROJECT_DIR)
        try:
            run.wait(seconds)
        except subprocess.TimeoutExpired:
            run.kill()  # asked politely it would save 81 GB first
            run.wait()
            time.sleep(LEAVING_SECONDS)
            output.write(f"error: not through after {seconds / 60:g} minutes\n")
    return run.returncode


def command_of(row: Row, arguments: GpuArguments, folder: Path, *, num_gpus: int) -> list[str]:
    """The command of a row, as a user would start it."""
    config = json.loads((PROJECT_DIR / row.ds_config).read_text())
    config = {**config, "zero_optimization": {**config["zero_optimization"], **row.zero}, **row.sections}
    (folder / "ds_config.json").write_text(json.dumps(config))
    launcher = [*DEEPSPEED, f"--num_gpus={num_gpus}"]
    words = [*launcher, "pretrain.py", "--recipe", f"recipes/benchmark_{row.recipe}.yaml"]
    words += [
        "--deepspeed",
        str(folder / "ds_config.json"),
        "--output_dir",
        str(folder / "run"),
        "--logging_steps",
        "1",
    ]
    words += [
        *(SHORT if row.is_short else ()),
        *(SLOT_STEPS if arguments.slot else ()),
        *(() if arguments.dataset is None else ("--dataset", arguments.dataset)),
    ]
    return [*words, *row.flags]


def format_command(row: Row, command: Sequence[str], folder: str) -> str:
    """The command for copy and paste, with the other changes of the row."""
    words = [f"{name}={value}" for name, value in row.environment.items()]
    words += ["deepspeed", *(word.replace(folder, "runs/gpu") for word in command[len(DEEPSPEED) :])]
    other = {**row.zero, **row.sections}
    changed = f"  # {row.ds_config} with {json.dumps(other)}" if other else f"  # {row.ds_config}"
    return shlex.join(words) + changed


def figures_of(run_dir: Path, log: str, returncode: int) -> dict[str, Any]:
    """The metrics in the records of a run; of a failed run, its error or last line."""
    records = list(read_records(run_dir)) if (run_dir / "metrics.jsonl").is_file() else []
    summaries = [record for record in records if record.get("event") == "summary"]
    if returncode or not summaries:
        lines = [line for line in log.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ") or "OutOfMemoryError" in line]
        return {"failed": (errors or lines or ["no output"])[-1][-300:], "exit_code": returncode}
    steps = [record for record in records if "loss" in record and "event" not in record]
    summary = summaries[-1]
    return {
        "tokens_per_second_per_gpu": summary["overall_tokens_per_second_per_gpu"],
        "mfu": summary.get("mfu"),
        "mfu_causal": summary.get("mfu_causal"),
        "peak_memory_bytes": summary.get("peak_memory_bytes"),
        "data_seconds": summary["data_seconds"],
        "optimizer_seconds": summary["optimizer_seconds"],
        "total_seconds": summary["total_seconds"],
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "num_steps": steps[-1]["step"],
    }
