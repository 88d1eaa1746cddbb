"""--hang_timeout_minutes: end a run that makes no progress, and write the stack traces of all its processes."""

import faulthandler
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.cli.program import hard_exit
from pretraining.errors import CRASH_EXIT_CODE
from pretraining.system.launchers import process_rank

STACKS_DIR_NAME = "stacks"
OTHERS_DUMP_SECONDS = 5.0  # they noticed at the same time, and a launcher ends them when the first process leaves
SPARE_SECONDS = 30.0
SAVE_TIMEOUT_FACTOR = 10  # a checkpoint of 1 TB on a slow file system is no hang


class HangWatchdog(TrainerCallback):
    """Waits for micro steps, batches of evaluations and saves, from the first step to the last evaluation."""

    def __init__(self, run_dir: Path, *, minutes: float, is_writing: Callable[[], bool]) -> None:
        self._stacks_dir = run_dir / STACKS_DIR_NAME
        self._limit = 60 * minutes
        self._is_writing = is_writing
        self._moved_at: float | None = None
        self._is_training = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Begin to watch."""
        self._is_training = True
        self._moved_at = time.monotonic()
        threading.Thread(target=self._watch, name="hang watch", daemon=True).start()

    def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
        """A micro step."""
        self._moved_at = time.monotonic()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """The last micro step of a step."""
        self._moved_at = time.monotonic()

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """A batch of an evaluation."""
        self._moved_at = time.monotonic()

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        """A save."""
        self._moved_at = time.monotonic()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """What comes now is watched only where it tells of its progress."""
        self._is_training = False
        self._moved_at = None

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The end of an evaluation."""
        self._moved_at = time.monotonic() if self._is_training else None

    def _watch(self) -> None:
        while True:
            left, moved_at = self._limit, self._moved_at
            limit = self._limit * (SAVE_TIMEOUT_FACTOR if self._is_writing() else 1)
            if moved_at is None:
                faulthandler.cancel_dump_traceback_later()
            else:
                # This thread could not run if something kept Python's lock; that one needs no lock.
                faulthandler.dump_traceback_later(limit + SPARE_SECONDS, exit=True)
                left = moved_at + limit - time.monotonic()
            if left <= 0:
                self._end()
            time.sleep(min(left, self._limit / 4))

    def _end(self) -> None:
        rank = process_rank()
        self._stacks_dir.mkdir(exist_ok=True)
        with (self._stacks_dir / f"rank-{rank}.txt").open("w") as stacks:
            faulthandler.dump_traceback(stacks)
        time.sleep(OTHERS_DUMP_SECONDS)
        said = (
            f"--hang_timeout_minutes {self._limit / 60:g}: nothing moved for so long; where each process stood is in "
        )
        hard_exit(f"{said}{self._stacks_dir}" if rank == 0 else "", CRASH_EXIT_CODE)
