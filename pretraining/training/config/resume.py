"""Where a run starts: at the beginning, or at the newest checkpoint whose hashes match."""

import logging
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import distributed

from pretraining.errors import UserError
from pretraining.runs.checksums import corruption_reason, read_complete
from pretraining.runs.claim import checkpoint_to_resume, lock_run_folder
from pretraining.runs.run_folder import INCOMPLETE, TOKEN_NAME, TRAINER_STATE_NAME, quarantine, read_trainer_state
from pretraining.system.checked_json import from_json, type_problem
from pretraining.training.data.phases import RecordedOrder
from pretraining.training.distributed.collectives import all_gather_objects, run_on_main
from pretraining.training.metrics.step_metrics import callback_state

VISIBLE_WITHIN_SECONDS = 60.0  # NFS caches the entries of a folder for 30 to 60 s (acdirmin, acdirmax)
POLL_SECONDS = 0.2
MIN_LOGGED_BYTES = 1e9  # smaller checkpoints are read in no time

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run resumes from, its step, and the blocks consumed until then.

    `blocks_by_store` counts them by block store, the sha256 of its manifest.json, and `order` is the one in which they
    were read; both are None in checkpoints of earlier versions. `skipped` are the positions that rollbacks skip.
    """

    checkpoint: Path | None = None
    step: int = 0
    num_blocks: int = 0
    blocks_by_store: Mapping[str, int] | None = None
    order: RecordedOrder | None = None
    skipped: tuple[tuple[int, int], ...] = ()


def find_resume_point(run_dir: Path, resume: str) -> ResumePoint:
    """Find the checkpoint of --resume, before anything is loaded; file contents are not checked yet.

    Raises:
        UserError: when a checkpoint must exist and none is complete.
    """
    checkpoint = checkpoint_to_resume(run_dir, resume)
    if checkpoint is None:
        return ResumePoint()
    path = checkpoint / TRAINER_STATE_NAME
    try:
        state = read_trainer_state(checkpoint)
        kept = {"step": state.global_step, **callback_state(state, "AnomalyCallback")}
    except Exception as error:  # the Trainer's dataclass accepts any file
        raise UserError(f"{path}: cannot be read ({error}); resume from another checkpoint") from None
    problem = type_problem(kept, {"step": int, "num_blocks": int, "blocks_by_store": {str: int}})
    try:
        order = from_json(RecordedOrder | None, kept.get("order"), "order")
        skipped = from_json(tuple[tuple[int, ...], ...], kept.get("skipped", []), "skipped")
        ranges = tuple((start, stop) for start, stop in skipped)  # ValueError for any other number of them
    except ValueError as error:
        problem = str(error)
    if problem is not None or "num_blocks" not in kept:
        problem = problem or "num_blocks is missing"
        raise UserError(f"{path}: is damaged ({problem}); resume from another checkpoint")
    return ResumePoint(checkpoint, kept["step"], kept["num_blocks"], kept.get("blocks_by_store"), order, ranges)


def lock_and_verify(start: ResumePoint, run_dir: Path, resume: str) -> ResumePoint:
    """Lock the run folder and compare the checkpoint with its hashes; called on all processes.

    With --resume auto, fall back from a damaged checkpoint to the one before.

    Raises:
        UserError: when another run holds the folder or has saved since, or no intact checkpoint is left.
    """
    run_on_main(lambda: lock_run_folder(run_dir))
    check_shared(run_dir)
    now = run_on_main(lambda: find_resume_point(run_dir, resume))
    if any(all_gather_objects(start != now)):
        raise UserError(
            f"--output_dir {run_dir}: the folder changed during start-up, or the processes see different files (a "
            "network file system?); run the same command again"
        )
    while now.checkpoint is not None:
        problem = _first_corrupt_file(now.checkpoint)
        if problem is None:
            break
        if resume != "auto":
            raise UserError(f"--resume {now.checkpoint}: is damaged ({problem}); use an earlier one, or --resume auto")
        now = run_on_main(partial(_fall_back_from, now.checkpoint, problem, run_dir))
        logger.info("resuming from %s instead", now.checkpoint)
    return now


def check_shared(run_dir: Path) -> None:
    """Check that all processes share one run folder: each must see what the first one writes. Collective.

    Otherwise each save would fail, for none of them has all files of a checkpoint.

    Raises:
        UserError: when they do not, with host and folder.
    """
    token_path = run_dir / TOKEN_NAME
    token = run_on_main(partial(_write_token, token_path))
    found = all_gather_objects((_sees(token_path, token), str(run_dir.resolve()), socket.gethostname()))
    run_on_main(partial(token_path.unlink, missing_ok=True))
    seen, folders, hosts = zip(*found, strict=True)
    if not all(seen):
        rank = seen.index(False)
        raise UserError(
            f"--output_dir {run_dir}: is not the same folder on {hosts[rank]}: process {rank} does not see what "
            f"process 0 writes there ({folders[rank]} on {hosts[rank]}, not {folders[0]} on {hosts[0]}); use a folder "
            "that all processes share, with its absolute path"
        )


def _write_token(path: Path) -> str:
    token = secrets.token_hex(16)
    path.write_text(token, encoding="ascii")
    return token


def _sees(path: Path, token: str) -> bool:
    """Whether the token appears within the time that network file systems cache."""
    deadline = time.monotonic() + VISIBLE_WITHIN_SECONDS
    while True:
        with suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="ascii") == token:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)


def _first_corrupt_file(checkpoint: Path) -> str | None:
    """Describe the first file that does not match its hash; each process reads a part of them."""
    num_bytes = read_complete(checkpoint)["num_bytes"]
    if num_bytes > MIN_LOGGED_BYTES:
        logger.info("verifying %.1f GB of %s", num_bytes / 1e9, checkpoint)
    found = all_gather_objects(
        corruption_reason(checkpoint, part=distributed.get_rank(), num_parts=distributed.get_world_size())
    )
    return next((problem for problem in found if problem is not None), None)


def _fall_back_from(checkpoint: Path, problem: str, run_dir: Path) -> ResumePoint:
    """Rename a damaged checkpoint and find the one before, which must exist."""
    logger.warning("%s: %s; renamed to %s", checkpoint, problem, quarantine(checkpoint, INCOMPLETE).name)
    return find_resume_point(run_dir, "auto")
