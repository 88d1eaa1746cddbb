"""Measure the rows: each is a separate run of pretrain.py under the deepspeed launcher."""

import importlib.util
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import SHORT, GpuArguments, Row, num_steps
from benchmarks.results import PROJECT_DIR, hardware, versions
from pretraining.runs.history import read_records
from pretraining.system.host import available_host_bytes
from pretraining.system.launchers import DEEPSPEED

logger = logging.getLogger("pretraining.benchmarks")

PACKAGES = ("torch", "deepspeed", "transformers", "accelerate", "triton", "liger-kernel", "flash-attn", "torchao")
GPU_NAMES = "import torch\nfor n in range(torch.cuda.device_count()): print(torch.cuda.get_device_name(n))"
SPEEDS = "from pretraining.doctor.speed import speed\nfor it in speed([]): print(f'{it.name}: {it.figure}')"
LEAVING_SECONDS = 15.0  # in which killed processes end, and free the GPUs
SPEED_SECONDS = 120.0  # the imports of a machine whose disk is cold included


def find_gpus() -> list[str]:
    """Names of the GPUs that torch sees, queried in a separate process, which frees the memory of CUDA."""
    words = [sys.executable, "-c", GPU_NAMES]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def machine(gpus: Sequence[str], *, ends_at: float) -> dict[str, Any]:
    """Hardware and versions, and the speed of a plain matrix multiplication if that is known in time."""
    words, seconds = [sys.executable, "-c", SPEEDS], min(SPEED_SECONDS, seconds_until(ends_at))
    try:
        options: dict[str, Any] = {"capture_output": True, "text": True, "cwd": PROJECT_DIR, "timeout": seconds}
        done = subprocess.run(words, check=False, **options)
        speeds = done.stdout.splitlines() if done.returncode == 0 else [f"Speed not measured: {done.stderr[-200:]}"]
    except subprocess.TimeoutExpired:
        speeds = [f"Speed not measured: not through after {seconds:.0f} s"]
    return {"hardware": hardware(), "gpus": list(gpus), "versions": versions(PACKAGES), "speeds": speeds}


def seconds_until(ends_at: float) -> float:
    """Seconds until a time of the monotonic clock; 0 when it has passed."""
    return max(ends_at - time.monotonic(), 0.0)


def is_wanted(row: Row, done: dict[str, Any], arguments: GpuArguments, *, num_gpus: int) -> bool:
    """Whether a row can be measured here and is not measured yet, or only with fewer steps."""
    if row.package is not None and importlib.util.find_spec(row.package) is None:
        logger.info("%s: %s is not installed", row.name, row.package)
        return False
    if row.host_gigabytes > available_host_bytes() / 1e9:
        logger.info("%s: needs %d GB of host memory", row.name, row.host_gigabytes)
        return False
    num_measured = done.get(row.name, {}).get("num_steps", 0)  # a failed row has none
    is_missing = num_measured < num_steps(row, is_slot=arguments.slot)
    return (arguments.small or num_gpus >= row.num_gpus) and (arguments.again or is_missing)


def measure(row: Row, arguments: GpuArguments, *, num_gpus: int, ends_at: float) -> dict[str, Any]:
    """The metrics of one run, or its error; it is killed at `ends_at` of the monotonic clock."""
    logger.info("%s ...", row.name)
    with tempfile.TemporaryDirectory() as folder:
        command = command_of(row, arguments, Path(folder), num_gpus=num_gpus)
        environment = {**os.environ, **row.environment}
        started_at, minutes = time.monotonic(), row.minutes or arguments.row_minutes
        log = Path(folder) / "log"
        code = run_logged(command, log, environment, seconds=min(60 * minutes, seconds_until(ends_at)))
        figures = figures_of(Path(folder) / "run", log.read_text(errors="replace"), code)
        figures["seconds"] = time.monotonic() - started_at
    figures["command"] = format_command(row, command, folder)
    logger.info(
        "%s: %s", row.name, figures.get("failed") or f"{figures['tokens_per_second_per_gpu']:,.0f} tokens/s/GPU"
    )
    return figures


def run_logged(command: Sequence[object], log: Path, environment: Mapping[str, str], *, seconds: float) -> int:
    """Run a command with its output in a file; its exit code. After this time, kill it and what it started."""
    with log.open("a") as output:
        words = [str(word) for word in command]
        run = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=PROJECT_DIR, start_new_session=True
        )
        try:
            run.wait(seconds)
        except subprocess.TimeoutExpired:
            output.write(f"error: not through after {seconds / 60:.1f} minutes\n")
        finally:
            if run.returncode != 0:  # Ctrl-C included, which does not reach another session
                _kill(run)
    return run.returncode


def _kill(run: subprocess.Popen) -> None:
    """Kill a run and all that it started, and wait until they are gone.

    A training process that only loses its launcher would save a checkpoint of 81 GB before it frees its GPU.
    """
    ends_at = time.monotonic() + LEAVING_SECONDS
    with suppress(ProcessLookupError):  # none is left
        while seconds_until(ends_at):
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            time.sleep(0.1)


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
        *("--max_steps", str(num_steps(row, is_slot=arguments.slot))),
        *(() if arguments.dataset is None else ("--dataset", _absolute(arguments.dataset))),
    ]
    return [*words, *row.flags]


def _absolute(dataset: str) -> str:
    """A folder of the caller, for a run whose working directory is the project; a name stays."""
    return str(Path(dataset).resolve()) if Path(dataset).exists() else dataset


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
        return {"failed": error_of(log), "exit_code": returncode}
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


def error_of(log: str) -> str:
    """The last error in the output of a failed program, or its last line: 300 characters of it at most."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ") or "OutOfMemoryError" in line]
    return (errors or lines or ["no output"])[-1][-300:]
