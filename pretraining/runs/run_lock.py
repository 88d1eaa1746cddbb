"""One run at a time writes a run folder."""

import logging
import os
import time
from pathlib import Path

from pretraining.errors import UserError
from pretraining.system.locks import is_locked, lock_file

LOCK_NAME = "run.lock"
WAIT_SECONDS = 60.0  # a launcher that was killed leaves its processes a while, and they may still be saving

logger = logging.getLogger(__name__)


def lock_run_folder(run_dir: Path, *, wait_seconds: float = WAIT_SECONDS) -> None:
    """Hold the run folder until this process ends; wait a while for a run that is ending.

    Raises:
        UserError: when another run holds it still.
    """
    descriptor = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + wait_seconds
    said = False
    while not lock_file(descriptor, run_dir / LOCK_NAME):
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        if time.monotonic() > deadline:
            raise UserError(
                f"--output_dir {run_dir}: another run (process {owner}) writes it; wait for its end, stop it, or "
                "choose another folder"
            )
        if not said:
            logger.info("waiting for the run that writes %s (process %s) to end", run_dir, owner)
            said = True
        time.sleep(0.5)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def is_being_written(run_dir: Path) -> bool:
    """Whether a run of this machine holds the folder now."""
    return is_locked(run_dir / LOCK_NAME)
