"""A run of pretrain.py as seen from outside: its progress, whether it saves, and killing all or a part of it."""

import json
import logging
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pretraining.runs.checksums import COMPLETE_NAME
from pretraining.runs.run_folder import METRICS_NAME, all_checkpoints, checkpoint_step, complete_checkpoints
from pretraining.system.processes import ProcessHandle, command_words, descendants

POLL_SECONDS = 0.005  # a save of a small model takes 50 ms
TAIL_BYTES = 1 << 16  # more than a record has
EXIT_SECONDS = 30.0

Part = Literal["everything", "a rank", "the launcher"]

logger = logging.getLogger(__name__)


class KillableRun:
    """Starts a run repeatedly with the same command; `program` is the script that each of its ranks runs."""

    def __init__(self, command: Sequence[str], run_dir: Path, program: Path) -> None:
        self.run_dir = run_dir
        self.log_path = run_dir.with_suffix(".log")
        self.resume_seconds: list[float] = []  # from each restart to its first new step
        self.started_at = 0.0
        self._command = [*command, "--output_dir", str(run_dir), "--logging_steps", "1"]
        self._metrics = run_dir / METRICS_NAME
        self._program = str(program)

    def start(self) -> None:
        """Start or restart the run."""
        self._resumes = self._metrics.exists()
        self._old_log = self._log_number()
        self._from_step = self.newest_checkpoint()
        self.started_at = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def exit_code(self) -> int:
        """Wait for the launcher and return its exit code."""
        return self._process.wait()

    def wait_until(self, is_reached: Callable[[], bool]) -> bool:
        """Wait for a condition; False if the run ends before."""
        while self.wait_seconds(0.0):
            if is_reached():
                return True
        return False

    def wait_seconds(self, seconds: float) -> bool:
        """Wait; False if the run ends before."""
        try:
            self._process.wait(max(seconds, POLL_SECONDS))
        except subprocess.TimeoutExpired:
            if self._resumes and self.newest_step() > self._from_step:
                self._resumes = False
                self.resume_seconds.append(time.monotonic() - self.started_at)
            return True
        except BaseException:
            self.kill("everything", random.Random(0))
            raise
        return False

    def newest_step(self) -> int:
        """The last step in the log, -1 before the first step of this start."""
        number = self._log_number()
        if number is None or number == self._old_log:  # a resumed run replaces its log by one without later steps
            return -1
        with self._metrics.open("rb") as file:
            file.seek(max(0, self._metrics.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")
        for line in reversed(lines):
            with suppress(ValueError):
                record = json.loads(line)
                if "loss" in record:
                    return record["step"]
        return 0

    def newest_checkpoint(self) -> int:
        """The step of the newest complete checkpoint, 0 without one."""
        steps = [checkpoint_step(checkpoint) for checkpoint in complete_checkpoints(self.run_dir)]
        return max((step for step in steps if step is not None), default=0)

    def is_saving(self) -> bool:
        """Whether this start is writing a checkpoint."""
        if self._log_number() == self._old_log:
            return False
        return any(not (folder / COMPLETE_NAME).exists() for folder in all_checkpoints(self.run_dir))

    def has_started_saving(self, num_steps: int) -> bool:
        """Whether a save is in progress, or the last one of a run of `num_steps` is done."""
        return self.is_saving() or self.newest_step() == num_steps == self.newest_checkpoint()

    def kill(self, part: Part, chance: random.Random) -> None:
        """Kill the run or a part of it, and wait until all its processes have ended."""
        processes = _process_tree(self._process.pid)
        _kill(self._chosen(processes, part, chance) or processes)
        deadline = time.monotonic() + EXIT_SECONDS
        while (running := [process for process in processes if process.is_alive()]) and time.monotonic() < deadline:
            self._process.poll()
            time.sleep(POLL_SECONDS)
        if running:
            logger.warning("%d processes ran for %.0f s without %s", len(running), EXIT_SECONDS, part)
        _kill(running)
        self._process.wait()

    def _chosen(self, processes: list[ProcessHandle], part: Part, chance: random.Random) -> list[ProcessHandle]:
        """The processes of a part; none if they have not started yet."""
        if part == "everything":
            return processes
        running = [process for process in processes if self._program in command_words(process.pid)[1:3]]
        parents = {process.pid: process.parent() for process in running}  # of ranks and their forks
        ranks = [process for process in processes if process.pid in parents and parents[process.pid] not in parents]
        if part == "a rank":
            return [chance.choice(ranks)] if ranks else []
        below_ranks = {process.pid for rank in ranks for process in _process_tree(rank.pid)}
        return [process for process in processes if process.pid not in below_ranks]

    def _log_number(self) -> int | None:
        return self._metrics.stat().st_ino if self._metrics.exists() else None


def _process_tree(pid: int) -> list[ProcessHandle]:
    """A process and all below it; none if it has ended."""
    with suppress(OSError):
        return [ProcessHandle.of(pid), *descendants(pid)]
    return []


def _kill(processes: Sequence[ProcessHandle]) -> None:
    for process in processes:
        if process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
