"""Claim a run folder: which run may write there, and from which checkpoint it resumes."""

import logging
import os
import socket
import time
from pathlib import Path

from pretraining.errors import UserError
from pretraining.runs.checksums import COMPLETE_NAME, incomplete_reason
from pretraining.runs.run_folder import (
    BLOCKS_DIR_NAME,
    METRICS_NAME,
    MODEL_DIR_NAME,
    PARTIAL_BLOCKS_SUFFIX,
    RUN_RECORD_NAME,
    TOKEN_NAME,
    TOKENIZER_DIR_NAME,
    complete_checkpoints,
    is_run_folder,
)
from pretraining.system.files import TEMPORARY_SUFFIX
from pretraining.system.locks import is_locked, lock_file

LOCK_NAME = "run.lock"
MAX_OWNER_BYTES = 128  # a process number and a host, of 64 characters at most
LOCK_SECONDS = 60.0  # processes of a killed launcher may still be saving
# What a run folder can contain before run.json.
STARTUP_FILES = (
    LOCK_NAME,
    TOKEN_NAME,
    TOKENIZER_DIR_NAME,
    RUN_RECORD_NAME + TEMPORARY_SUFFIX,
    "tensorboard",
    *(BLOCKS_DIR_NAME + suffix for suffix in ("", PARTIAL_BLOCKS_SUFFIX, ".partial", ".lock")),
)

logger = logging.getLogger(__name__)


def checkpoint_to_resume(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint that --resume selects, None to start from scratch.

    Raises:
        UserError: when it is incomplete, or all finished checkpoints of the run are damaged.
    """
    if resume == "never":
        return None
    complete = complete_checkpoints(run_dir)
    if resume == "auto":
        if not complete:
            _check_none_lost(run_dir)
        return complete[-1] if complete else None
    problem = incomplete_reason(Path(resume))
    if problem is not None:
        known = f"; the newest complete one is {complete[-1]}" if complete else ""
        raise UserError(f"--resume {resume}: checkpoint is incomplete: {problem}{known}")
    return Path(resume)


def _check_none_lost(run_dir: Path) -> None:
    """Refuse to restart from scratch a run that had saved or finished; one killed before its first save may."""
    saved = sorted(path.parent for path in run_dir.glob(f"checkpoint-*/{COMPLETE_NAME}"))  # renamed ones too
    reasons = [f"{folder.name}: {incomplete_reason(folder) or 'was renamed'}" for folder in saved]
    if (run_dir / MODEL_DIR_NAME).exists():
        reasons.append(f"{MODEL_DIR_NAME}/ is that of a finished run")
    if reasons:
        raise UserError(
            f"--resume auto: all checkpoints in {run_dir} are damaged ({'; '.join(reasons)}); restore the files or use "
            "a new --output_dir"
        )


def claim_run_folder(run_dir: Path, checkpoint: Path | None, *, resume: str) -> None:
    """Create the run folder, unless it contains something that this run does not resume.

    A run that stopped before its first complete checkpoint starts again; one without a record counts as empty.

    Raises:
        UserError: when it contains another run or other files, or cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        is_run = is_run_folder(run_dir)
        has_no_record = is_run and not (run_dir / METRICS_NAME).exists()
        resumes = checkpoint is not None and checkpoint.parent.resolve() == run_dir.resolve()
        starts_again = resume == "auto" and is_run and not complete_checkpoints(run_dir)
        if starts_again and checkpoint is None:
            logger.info("no complete checkpoint in %s yet: starts from the beginning", run_dir)
        if has_no_record or resumes or starts_again or is_effectively_empty(run_dir):
            return
    except OSError as error:
        raise UserError(
            f"--output_dir {run_dir}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    if is_run:
        raise UserError(
            f"--output_dir {run_dir}: already contains a run; drop --resume to resume it, or choose another folder"
        )
    raise UserError(f"--output_dir {run_dir}: holds something else already; choose another folder")


def is_effectively_empty(run_dir: Path) -> bool:
    """Whether a folder contains only what a kill leaves at the start of a run."""
    return all(path.name in STARTUP_FILES for path in run_dir.iterdir())


def lock_run_folder(run_dir: Path, *, wait_seconds: float = LOCK_SECONDS) -> None:
    """Hold the lock of the run folder until this process ends; wait for a run that is ending.

    Raises:
        UserError: when another run still holds it.
    """
    descriptor = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    deadline, is_waiting = time.monotonic() + wait_seconds, False
    while not lock_file(descriptor, run_dir / LOCK_NAME):
        owner = os.pread(descriptor, MAX_OWNER_BYTES, 0).decode(errors="replace").strip() or "unknown"
        if time.monotonic() > deadline:
            raise UserError(
                f"--output_dir {run_dir}: another run (process {owner}) is writing there; wait, stop it, or choose "
                "another folder"
            )
        if not is_waiting:
            logger.info("waiting for the run that writes %s (process %s) to end", run_dir, owner)
        is_waiting = True
        time.sleep(0.5)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def is_being_written(run_dir: Path) -> bool:
    """Whether a run of this machine holds the lock of the folder."""
    return is_locked(run_dir / LOCK_NAME)
