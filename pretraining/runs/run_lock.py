"""One run at a time writes a run folder."""

import errno
import fcntl
import logging
import os
import time
from pathlib import Path

from pretraining.cli.errors import UserError

LOCK_NAME = "run.lock"
WAIT_SECONDS = 60.0  # a launcher that was killed leaves its processes a while, and they may still be saving
NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # some network file systems

logger = logging.getLogger(__name__)


def lock_run_folder(run_dir: Path, *, wait_seconds: float = WAIT_SECONDS) -> None:
    """Hold the run folder until this process ends; wait a while for a run that is ending.

    Raises:
        UserError: when another run holds it still.
    """
    descriptor = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + wait_seconds
    said = False
    while not _try_to_lock(descriptor):
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


def _try_to_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise
        logger.warning("the file system of the run folder has no locks; see that no two runs write into it")
    return True


def is_being_written(run_dir: Path) -> bool:
    """Whether a run of this machine holds the folder now."""
    try:
        descriptor = os.open(run_dir / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in NO_LOCKS_HERE
    finally:
        os.close(descriptor)
    return False
