"""A run of pretrain.py as seen from outside: how far it is, whether it saves, and a kill of all of it or a part."""

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
from pretraining.runs.run_folder import METRICS_NAME, checkpoint_step, complete_checkpoints
from pretraining.system.processes import ProcessHandle, command_words, descendants

LOOK_SECONDS = 0.005  # a save of a small model takes 50 ms
TAIL_BYTES = 1 << 16  # more than a record has
GONE_WITHIN_SECONDS = 30.0

Part = Literal["everything", "a rank", "the launcher"]

logger = logging.getLogger(__name__)


class KillableRun:
    """Starts a run again and again by the same command; `program` is the script that each of its ranks runs."""

    def __init__(self, command: Sequence[str], run_dir: Path, program: Path) -> None:
        self.run_dir = run_dir
        self.log_path = run_dir.with_suffix(".log")
        self.resume_seconds: list[float] = []  # from a start that was none of the first to its first new step
        self.began_at = 0.0
        self._command = [*command, "--output_dir", str(run_dir), "--logging_steps", "1"]
        self._metrics = run_dir / METRICS_NAME
        self._program = str(program)

    def start(self) -> None:
        """Start it, or start it again."""
        self._resumes = self._metrics.exists()
        self._old_log = self._log_number()
        self._from_step = self.newest_checkpoint()
        self.began_at = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def exit_code(self) -> int:
        """Of its launcher; waits for that."""
        return self._process.wait()

    def go_on_until(self, comes: Callable[[], bool]) -> bool:
        """Wait for something to come true; False when the run ends before."""
        while self.go_on_for(0.0):
            if comes():
                return True
        return False

    def go_on_for(self, seconds: float) -> bool:
        """Wait; False when the run ends before."""
        try:
            self._process.wait(max(seconds, LOOK_SECONDS))
        except subprocess.TimeoutExpired:
            self._look_for_new_step()
            return True
        except BaseException:
            self.kill("everything", random.Random(0))
            raise
        return False

    def newest_step(self) -> int:
        """The last step in the log, -1 as long as this start has not begun to train."""
        number = self._log_number()
        if number is None or number == self._old_log:  # a run that goes on writes its log anew, without later steps
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
        """Whether there is a checkpoint of this start that does not count yet."""
        if self._log_number() == self._old_log:
            return False
        folders = [path for path in self.run_dir.glob("checkpoint-*") if checkpoint_step(path) is not None]
        return any(not (folder / COMPLETE_NAME).exists() for folder in folders)

    def saves_or_has_saved(self, num_steps: int) -> bool:
        """Whether a save is going on, or none is to come any more in a run of so many steps."""
        return self.is_saving() or self.newest_step() == num_steps == self.newest_checkpoint()

    def kill(self, part: Part, chance: random.Random) -> None:
        """Kill the run or a part of it, and wait until no process of it is left."""
        processes = _family(self._process.pid)
        for process in self._chosen(processes, part, chance) or processes:
            _kill(process)
        deadline = time.monotonic() + GONE_WITHIN_SECONDS
        while (left := [process for process in processes if process.is_alive()]) and time.monotonic() < deadline:
            self._process.poll()
            time.sleep(LOOK_SECONDS)
        if left:
            logger.warning("%d processes went on for %.0f s without %s", len(left), GONE_WITHIN_SECONDS, part)
        for process in left:
            _kill(process)
        self._process.wait()

    def _chosen(self, processes: Sequence[ProcessHandle], part: Part, chance: random.Random) -> list[ProcessHandle]:
        """Those of a part; none while it is not there yet."""
        running = {process.pid for process in processes if self._program in command_words(process.pid)[1:3]}
        ranks = [process for process in processes if process.pid in running and process.parent() not in running]
        if part == "a rank":
            return [chance.choice(ranks)] if ranks else []
        below_ranks = {process.pid for rank in ranks for process in _family(rank.pid)}
        return [process for process in processes if part == "everything" or process.pid not in below_ranks]

    def _look_for_new_step(self) -> None:
        if self._resumes and self.newest_step() > self._from_step:
            self._resumes = False
            self.resume_seconds.append(time.monotonic() - self.began_at)

    def _log_number(self) -> int | None:
        return self._metrics.stat().st_ino if self._metrics.exists() else None


def _family(pid: int) -> list[ProcessHandle]:
    """A process and all below it, parents before their children."""
    with suppress(OSError):
        return [ProcessHandle.of(pid), *descendants(pid)]
    return []


def _kill(process: ProcessHandle) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
