"""A few real steps of a run in child processes, to see whether they fit and what they take.

Every process of the run starts one child, with its own rank and another port to meet at, before it joins the others
itself: what a GPU holds depends on how many share the weights. Out of memory ends a child and not the run. The
processes of a machine tell each other how it went in files.
"""

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.errors import UserError
from pretraining.system.launchers import (
    child_environment,
    free_port,
    has_launcher,
    launcher_identity,
    num_local_processes,
    num_processes,
    process_rank,
)
from pretraining.system.private_dirs import private_dir
from pretraining.training.dry_run.trial_result import TRIAL_VARIABLE, result_path

POLL_SECONDS = 0.1
END_SECONDS = 5.0  # in which a child that runs out of memory as well, or first, says so
FITS, OUT_OF_MEMORY = "fits", "out of memory"
# CUDA's allocator, the CPU's, Python's own, and what the kernel's OOM killer leaves.
MEMORY_WORDS = ("out of memory", "OutOfMemoryError", "MemoryError", "can't allocate memory", "Cannot allocate memory")
KILLED_CODE = -9
# No trace is left, and nothing but steps takes time or memory.
TRIAL_FLAGS = {
    "force": "true",
    "profile_plan": "false",
    "resume": "never",
    "global_batch_tokens": "none",
    "max_tokens": "none",
    "max_hours": "none",
    "lr_scheduler_type": "constant",
    "warmup_steps": "1",
    "logging_steps": "1",
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_on_start": "false",
    "export": "false",
    "export_every_tokens": "none",
    "report_to": "none",
    "report": "false",
    "sample_steps": "none",
    "push_to_hub": "false",
}


_PLACES = itertools.count()  # a slow process must not take what one place left for the next one


@dataclass(frozen=True)
class TrialSize:
    """How much of a run is tried."""

    micro_batch_blocks: int
    gradient_accumulation_steps: int
    num_steps: int

    @property
    def flags(self) -> list[str]:
        """As the command line says it, over whatever it says before."""
        values = {
            **TRIAL_FLAGS,
            "per_device_train_batch_size": self.micro_batch_blocks,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "max_steps": self.num_steps,
        }
        return [f"--{name}={value}" for name, value in values.items()]


class TrialRendezvous:
    """The folder in which the processes of one launcher meet for their trials; the first one makes and removes it."""

    def __init__(self) -> None:
        if num_local_processes() != num_processes():
            raise UserError(
                "--per_device_train_batch_size auto, --profile_plan: need all processes on one machine; pass a number"
            )
        if has_launcher():
            self._folder = private_dir(f"trial-{launcher_identity()}-{next(_PLACES)}")
        else:
            self._folder = Path(tempfile.mkdtemp(prefix="pretraining-trial-"))
        self._number = 0

    def __enter__(self) -> "TrialRendezvous":
        return self

    def __exit__(self, *_: object) -> None:
        if process_rank() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, as JSON knows it, on all of them; once."""
        folder = self._folder / "said"
        if process_rank() == 0:
            folder.mkdir()
            _write(folder / "value", json.dumps(make()))
        _wait_for(lambda: (folder / "value").is_file())
        value = json.loads((folder / "value").read_text())
        self._leave_together(folder)
        return value

    def run(self, size: TrialSize) -> tuple[str, list[dict[str, Any]]]:
        """Try: FITS and what was measured on each rank, or OUT_OF_MEMORY and nothing.

        Raises:
            UserError: when it ends in another way.
        """
        self._number += 1
        folder = self._folder / f"{self._number}"
        if process_rank() == 0:
            folder.mkdir()
            _write(folder / "port", str(free_port()))
        _wait_for(lambda: (folder / "port").is_file())
        outcome = _run_child(folder, size)
        _write(folder / f"outcome-{process_rank()}", outcome)
        paths = [folder / f"outcome-{rank}" for rank in range(num_processes())]
        _wait_for(lambda: all(path.is_file() for path in paths))
        outcomes = [path.read_text() for path in paths]
        failed = [text for text in outcomes if text not in (FITS, OUT_OF_MEMORY, "")]
        fits = all(text == FITS for text in outcomes)
        results = [json.loads(result_path(folder, rank).read_text()) for rank in range(num_processes())] if fits else []
        self._leave_together(folder)
        if failed and OUT_OF_MEMORY not in outcomes:
            raise UserError(f"a trial of the run failed: {failed[0]}")
        return (FITS if fits else OUT_OF_MEMORY), results

    def _leave_together(self, folder: Path) -> None:
        """Nobody removes what another one has not read."""
        _write(folder / f"read-{process_rank()}", "")
        if process_rank() == 0:
            _wait_for(lambda: all((folder / f"read-{rank}").is_file() for rank in range(num_processes())))


def _run_child(folder: Path, size: TrialSize) -> str:
    """FITS, OUT_OF_MEMORY, what else went wrong, or nothing when it was ended because of another rank's child."""
    environment = {**child_environment(), TRIAL_VARIABLE: str(folder)}
    if has_launcher():
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (folder / "port").read_text()}
    words = [sys.executable, *sys.argv, *size.flags, f"--output_dir={folder / 'run'}"]
    log = folder / f"log-{process_rank()}"
    with log.open("w") as output:
        child = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            while child.poll() is None:
                if _has_failed(folder) and not _ends_within(child, END_SECONDS):
                    return ""
                time.sleep(POLL_SECONDS)
        finally:
            child.kill()
    return _outcome(child.returncode, log.read_text(errors="replace"))


def _ends_within(child: subprocess.Popen, seconds: float) -> bool:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _outcome(code: int, log: str) -> str:
    if code == 0:
        return FITS
    if code == KILLED_CODE or any(word in log for word in MEMORY_WORDS):
        return OUT_OF_MEMORY
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(iter([*errors, *lines[::-1]]), f"exit code {code}")


def _has_failed(folder: Path) -> bool:
    return any(path.read_text() != FITS for path in folder.glob("outcome-*[0-9]"))


def _write(path: Path, text: str) -> None:
    """All at once, for those who look."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.rename(path)


def _wait_for(is_there: Callable[[], bool]) -> None:
    while not is_there():
        time.sleep(POLL_SECONDS)
