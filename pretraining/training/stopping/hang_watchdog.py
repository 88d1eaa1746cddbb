"""--hang_timeout_minutes: end a run that makes no progress, and write the stack traces of all its processes."""

import faulthandler
import threading
import time
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerControl, TrainerState

from pretraining.cli.program import hard_exit
from pretraining.errors import CRASH_EXIT_CODE
from pretraining.system.launchers import process_rank
from pretraining.training.trainer.hf_internals import RunCallback

STACKS_DIR_NAME = "stacks"
OTHERS_DUMP_SECONDS = 5.0  # the others time out together with this process; when rank 0 exits, a launcher kills them
FIRST_RANK_SECONDS = 1.0  # rank 0 logs the reason, and the end of another machine's process would end it before
SPARE_SECONDS = 30.0
SAVE_TIMEOUT_FACTOR = 10  # writing a checkpoint of 1 TB to a slow file system is not a hang


class HangWatchdog(RunCallback):
    """Expects micro steps, evaluation batches and saves, from the first step to the last evaluation."""

    def __init__(self, run_dir: Path, *, minutes: float, is_writing: Callable[[], bool]) -> None:
        self._stacks_dir = run_dir / STACKS_DIR_NAME
        self._timeout_seconds = 60 * minutes
        self._is_writing = is_writing
        self._last_progress_at: float | None = None
        self._is_training = False

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Start the watchdog's thread."""
        self._is_training = True
        self._note_progress(state, control)
        threading.Thread(target=self._watch, name="hang watchdog", daemon=True).start()

    def _note_progress(self, state: TrainerState, control: TrainerControl) -> None:
        self._last_progress_at = time.monotonic()

    substep_end = step_end = prediction_step = save = _note_progress

    def train_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Watch only evaluations from now on."""
        self._is_training = False
        self._last_progress_at = None

    def evaluate(self, state: TrainerState, control: TrainerControl) -> None:
        """Note the end of an evaluation."""
        self._last_progress_at = time.monotonic() if self._is_training else None

    def _watch(self) -> None:
        while True:
            timeout, last_progress_at = self._timeout_seconds, self._last_progress_at
            left = timeout
            if last_progress_at is None:
                faulthandler.cancel_dump_traceback_later()
            else:
                timeout *= SAVE_TIMEOUT_FACTOR if self._is_writing() else 1
                # For code that never releases Python's lock: this thread could not run, and that of faulthandler can.
                faulthandler.dump_traceback_later(timeout + SPARE_SECONDS, exit=True)
                left = last_progress_at + timeout - time.monotonic()
            if left <= 0:
                self._end()
            time.sleep(min(left, self._timeout_seconds / 4))

    def _end(self) -> None:
        rank = process_rank()
        self._stacks_dir.mkdir(exist_ok=True)
        with (self._stacks_dir / f"rank-{rank}.txt").open("w") as stacks:
            faulthandler.dump_traceback(stacks)
        time.sleep(OTHERS_DUMP_SECONDS + (0 if rank == 0 else FIRST_RANK_SECONDS))
        message = (
            f"--hang_timeout_minutes {self._timeout_seconds / 60:g}: no progress for that long; stack traces of all "
            f"processes are in {self._stacks_dir}"
        )
        hard_exit(message if rank == 0 else "", CRASH_EXIT_CODE)
