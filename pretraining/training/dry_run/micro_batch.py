"""--per_device_train_batch_size auto: the largest that the plan allows and a trial confirms; the global batch stays.

A trial is the same command with --profile_plan and two steps, in child processes of the first rank, one per rank of the
run: running out of memory ends a trial and not the run.
"""

import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture
from pretraining.errors import UserError
from pretraining.planning.fit import certainly_fails, problems
from pretraining.planning.footprint import footprint
from pretraining.planning.global_batch import divisors
from pretraining.planning.layout import MachineSpec, TrainingLayout
from pretraining.runs.record_file import read_run_record
from pretraining.runs.run_folder import is_run_folder
from pretraining.system.files import private_dir, write_atomically
from pretraining.system.launchers import (
    child_environment,
    free_port,
    has_launcher,
    launcher_identity,
    num_processes,
    process_rank,
)
from pretraining.training.config.early_checks import run_folder
from pretraining.training.config.layout import this_machine
from pretraining.training.dry_run.plan import make_plan
from pretraining.training.dry_run.temporary_run import is_out_of_memory

Found = TypeVar("Found")
FLAG = "--per_device_train_batch_size auto"
TRIAL_STEPS = 2  # the second has the optimizer's moments as well
TRIAL_MICRO_STEPS = 2  # the second adds to the gradients of the first
POLL_SECONDS = 0.1
EXIT_SECONDS = 5.0  # for the other ranks to report their error, once one has failed
FITS, OUT_OF_MEMORY = "fits", "out of memory"
KILLED_CODE = -9  # by the kernel, when the host runs out of memory

logger = logging.getLogger(__name__)


def with_largest_micro_batch(arguments: PretrainArguments, mixture: Mixture) -> PretrainArguments:
    """Set the micro batch that was found, by this start or by the run that is resumed.

    Raises:
        UserError: when not even one block fits, or a trial fails for another reason.
    """
    machine = this_machine()
    plan = make_plan(with_micro_batch(arguments, 1), machine, mixture)
    num_blocks = plan.batch.blocks // plan.batch.num_groups
    found = _recorded(run_folder(arguments), machine)
    if found is None or num_blocks % found:
        if machine.num_local_processes != machine.num_processes:
            raise UserError(f"{FLAG}: cannot try on several machines; use a number")
        found = from_first_rank(lambda: _largest(plan.layout, plan.machine, num_blocks))
    if found is None:
        raise UserError(f"{FLAG}: not even one block at a time fits; --dry_run shows what is needed and what would fit")
    logger.info("%s: %d blocks at a time, %d micro steps", FLAG, found, num_blocks // found)
    return with_micro_batch(arguments, found)


def with_micro_batch(arguments: PretrainArguments, number: int) -> PretrainArguments:
    """Set another micro batch with the same global batch."""
    trainer = {**arguments.trainer, "per_device_train_batch_size": number}
    if not arguments.data.has_global_batch:
        micro_steps = arguments.trainer.get("gradient_accumulation_steps") or 1
        blocks = (1 if arguments.finds_micro_batch else arguments.trainer["per_device_train_batch_size"]) * micro_steps
        trainer["gradient_accumulation_steps"] = blocks // number
    return replace(arguments, trainer=trainer)


def _recorded(run_dir: Path, machine: MachineSpec) -> int | None:
    """The micro batch of the run in this folder on as many processes, so that it resumes bit-exactly."""
    if not is_run_folder(run_dir):
        return None
    record = read_run_record(run_dir)
    if record.get("hardware", {}).get("num_processes") != machine.num_processes:
        return None
    return record.get("arguments", {}).get("per_device_train_batch_size")


def _largest(layout: TrainingLayout, machine: MachineSpec, num_blocks: int) -> int | None:
    for number in candidates(layout, machine, num_blocks):
        outcome = run_trial(number, min(TRIAL_MICRO_STEPS, num_blocks // number))
        logger.info("%s: %d blocks at a time: %s", FLAG, number, outcome)
        if outcome == FITS:
            return number
    return None


def candidates(layout: TrainingLayout, machine: MachineSpec, num_blocks: int) -> list[int]:
    """Divisors of `num_blocks`, the blocks per step of a process, that may fit; the largest first.

    On a GPU, without what the plan only assumes, since a trial out of memory does no harm there; without a GPU, with
    it, since the kernel may kill any process.
    """
    sizes = divisors(num_blocks)
    if machine.has_gpu:
        machine = replace(machine, host_bytes=None)
    needed = {size: footprint(replace(layout, micro_batch_blocks=size), has_gpu=machine.has_gpu) for size in sizes}
    is_too_large = certainly_fails if machine.has_gpu else problems
    return [size for size in sizes if not is_too_large(needed[size], machine)]


def from_first_rank(find: Callable[[], Found]) -> Found:
    """Call `find` on the first rank and return its result, which JSON keeps, on all: by a file, before they join."""
    if not has_launcher():
        return find()
    folder = private_dir(f"trial-{launcher_identity()}")
    note = folder / "found"
    if process_rank() > 0:
        _wait_until(note.is_file)
        found = json.loads(note.read_text())
        (folder / f"read-{process_rank()}").touch()
        return found
    try:
        found = find()
        write_atomically(note, json.dumps(found).encode())
        _wait_until(lambda: len(list(folder.glob("read-*"))) == num_processes() - 1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def run_trial(micro_batch_blocks: int, micro_steps: int) -> str:
    """Run a few steps: FITS or OUT_OF_MEMORY.

    Raises:
        UserError: when the trial fails for another reason.
    """
    flags = {
        "profile_plan": "true",
        "per_device_train_batch_size": micro_batch_blocks,
        "gradient_accumulation_steps": micro_steps,
        "global_batch_tokens": "none",
        "global_batch_blocks": "none",
        "max_tokens": "none",
        "resume": "never",
        "max_steps": TRIAL_STEPS,
    }
    command = [word for word in sys.argv if not word.startswith("--local_rank=")]  # which deepspeed adds
    command += [f"--{name}={value}" for name, value in flags.items()]
    with tempfile.TemporaryDirectory(prefix="pretraining-trial-") as folder:
        logs = [Path(folder, f"log-{rank}") for rank in range(num_processes())]
        codes = _run_ranks([sys.executable, *command, f"--output_dir={folder}/run"], logs)
        failures = [
            _failure(code, log.read_text(errors="replace")) for code, log in zip(codes, logs, strict=True) if code
        ]
    if failures and OUT_OF_MEMORY not in failures:
        raise UserError(f"a trial of the run failed: {failures[0]}")
    return OUT_OF_MEMORY if failures else FITS


def _run_ranks(command: list[str], logs: list[Path]) -> list[int | None]:
    """Run a command as one rank per log; return the exit codes, None of ranks still running after a failure."""
    size, port = str(len(logs)), str(free_port())
    environment = {
        **child_environment(),
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size,
        "TORCHELASTIC_USE_AGENT_STORE": "False",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    children = []
    try:
        for rank, log in enumerate(logs):
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            with log.open("w") as output:
                children.append(
                    subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
                )
        _wait_until(lambda: any(child.poll() for child in children) or all(child.poll() == 0 for child in children))
        deadline = time.monotonic() + EXIT_SECONDS
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0, deadline - time.monotonic()))
        return [child.poll() for child in children]
    finally:
        for child in children:
            child.kill()


def _failure(code: int, log: str) -> str:
    if code == KILLED_CODE or is_out_of_memory(log):
        return OUT_OF_MEMORY
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(iter([*errors, *lines[::-1]]), f"exit code {code}")


def _wait_until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        time.sleep(POLL_SECONDS)
