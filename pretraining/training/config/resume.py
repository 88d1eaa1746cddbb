"""Where a run starts: at the beginning, or at the newest checkpoint whose every byte is as it was written."""

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
from pretraining.runs.checked_json import type_problem
from pretraining.runs.checksums import corruption_reason, read_complete
from pretraining.runs.run_folder import (
    INCOMPLETE,
    TOKEN_NAME,
    TRAINER_STATE_NAME,
    checkpoint_step,
    checkpoint_to_resume,
    complete_checkpoints,
    quarantine,
    read_trainer_state,
)
from pretraining.runs.run_lock import lock_run_folder
from pretraining.system.restarts import Restart
from pretraining.training.distributed.collectives import all_gather_objects, run_on_main
from pretraining.training.metrics.step_metrics import callback_state

SEEN_WITHIN_SECONDS = 30.0  # NFS keeps what it knows of a folder for 30 s at first (acdirmin), of a file for 3
LOOK_AGAIN_SECONDS = 0.2
LARGE_BYTES = 1e9  # below that, reading a checkpoint takes no time worth a line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that a run resumes from, its step, and the blocks that were consumed until then.

    `blocks_by_store` is how many were read of each block store, by the sha256 of its manifest.json; None where an
    earlier version saved the checkpoint.
    """

    checkpoint: Path | None = None
    step: int = 0
    num_blocks: int = 0
    blocks_by_store: Mapping[str, int] | None = None


def effective_resume_mode(run_dir: Path, resume: str, restart: Restart | None) -> str:
    """--resume, which after a crash is that of the first attempt only until something was saved."""
    if restart is None or resume == "auto":
        return resume
    # The first attempt set aside what was later than the named checkpoint.
    named = checkpoint_step(Path(resume)) or 0
    has_saved = any((checkpoint_step(checkpoint) or 0) > named for checkpoint in complete_checkpoints(run_dir))
    return "auto" if has_saved or resume == "never" else resume


def find_resume_point(run_dir: Path, resume: str) -> ResumePoint:
    """What --resume means, before anything is loaded; no file's content is checked yet.

    Raises:
        UserError: when there is no complete checkpoint where one must be.
    """
    checkpoint = checkpoint_to_resume(run_dir, resume)
    if checkpoint is None:
        return ResumePoint()
    path = checkpoint / TRAINER_STATE_NAME
    try:
        state = read_trainer_state(checkpoint)
        kept = {"step": state.global_step, **callback_state(state, "AnomalyCallback")}
    except Exception as error:  # the Trainer's dataclass takes a file as it is
        raise UserError(f"{path}: cannot be read ({error}); resume from another checkpoint") from None
    problem = type_problem(kept, {"step": int, "num_blocks": int, "blocks_by_store": {str: int}})
    if problem is not None or "num_blocks" not in kept:
        problem = problem or "num_blocks is missing"
        raise UserError(f"{path}: is damaged ({problem}); resume from another checkpoint")
    return ResumePoint(checkpoint, kept["step"], kept["num_blocks"], kept.get("blocks_by_store"))


def lock_and_verify(start: ResumePoint, run_dir: Path, resume: str) -> ResumePoint:
    """Hold the run folder, and see that every byte of the checkpoint is sound; called on all processes.

    An earlier checkpoint takes the place of a damaged one.

    Raises:
        UserError: when another run holds the folder or has saved since, or no sound checkpoint is left.
    """
    run_on_main(lambda: lock_run_folder(run_dir))
    check_shared(run_dir)
    now = run_on_main(lambda: find_resume_point(run_dir, resume))
    if any(all_gather_objects(start != now)):
        raise UserError(
            f"--output_dir {run_dir}: another run has saved there while this one started, or its processes do not all "
            "see it alike; give the same command again"
        )
    while now.checkpoint is not None:
        problem = _damage_of(now.checkpoint)
        if problem is None:
            break
        if resume != "auto":
            raise UserError(f"--resume {now.checkpoint}: is damaged ({problem}); give an earlier one, or --resume auto")
        now = run_on_main(partial(_without, now.checkpoint, problem, run_dir))
        logger.info("going on from %s instead", now.checkpoint)
    return now


def check_shared(run_dir: Path) -> None:
    """See that all processes have the same run folder: each must find there what the first one writes. Collective.

    Otherwise each save would fail, for none of them has all files of a checkpoint.

    Raises:
        UserError: when they do not, with host and folder.
    """
    token_path = run_dir / TOKEN_NAME
    token = run_on_main(partial(_write_token, token_path))
    places = all_gather_objects(f"{run_dir.resolve()} on {socket.gethostname()}")
    seen = all_gather_objects(_sees(token_path, token))
    run_on_main(partial(token_path.unlink, missing_ok=True))
    if not all(seen):
        rank = seen.index(False)
        raise UserError(
            f"--output_dir {run_dir}: process {rank} does not see what process 0 writes there ({places[rank]}, against "
            f"{places[0]}); use a folder that all processes share, with its absolute path"
        )


def _write_token(path: Path) -> str:
    token = secrets.token_hex(16)
    path.write_text(token, encoding="ascii")
    return token


def _sees(path: Path, token: str) -> bool:
    """Whether the token appears, within what network file systems keep in their caches."""
    deadline = time.monotonic() + SEEN_WITHIN_SECONDS
    while True:
        with suppress(OSError, UnicodeDecodeError):
            if path.read_text(encoding="ascii") == token:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_AGAIN_SECONDS)


def _damage_of(checkpoint: Path) -> str | None:
    """What is wrong with its files, which the processes read in parts."""
    num_bytes = read_complete(checkpoint)["num_bytes"]
    if num_bytes > LARGE_BYTES:
        logger.info("checking the %.1f GB of %s", num_bytes / 1e9, checkpoint)
    found = all_gather_objects(
        corruption_reason(checkpoint, part=distributed.get_rank(), num_parts=distributed.get_world_size())
    )
    return next((problem for problem in found if problem is not None), None)


def _without(checkpoint: Path, problem: str, run_dir: Path) -> ResumePoint:
    """Set a damaged checkpoint aside and start from the one before, which there must be."""
    target = quarantine(checkpoint, INCOMPLETE)
    logger.warning("%s: %s; set aside as %s", checkpoint, problem, target.name)
    return find_resume_point(run_dir, "auto")
