"""Run folders and their checkpoints: which are there, which are whole, which is the newest."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.errors import UserError
from pretraining.runs.checksums import COMPLETE_NAME, incomplete_reason, is_known_finite, read_complete
from pretraining.runs.run_lock import LOCK_NAME
from pretraining.system.files import TEMPORARY_SUFFIX

if TYPE_CHECKING:
    from transformers import TrainerState

RUN_RECORD_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
TRAINER_STATE_NAME = "trainer_state.json"
REPORT_NAME = "report.html"
CURVES_NAME = "curves.png"
MODEL_DIR_NAME = "model"
TOKENIZER_DIR_NAME = "tokenizer"
# What stands in a run folder before run.json does.
BLOCKS_DIR_NAME = "blocks"  # of finetune.py, which makes them of conversations
# What finetune.py has not finished has an ending of its own: .partial can be an unfinished store of preprocess.py.
PARTIAL_BLOCKS_SUFFIX = ".partial-conversations"
EARLY_BLOCKS = tuple(BLOCKS_DIR_NAME + ending for ending in ("", PARTIAL_BLOCKS_SUFFIX, ".partial", ".lock"))
TOKEN_NAME = "run.token"  # by which all processes see that the folder is the same for them
STARTUP_FILES = (
    LOCK_NAME,
    TOKEN_NAME,
    TOKENIZER_DIR_NAME,
    RUN_RECORD_NAME + TEMPORARY_SUFFIX,
    "tensorboard",
    *EARLY_BLOCKS,
)
# What the name of a checkpoint ends in that is set aside.
INCOMPLETE, SUPERSEDED, REMOVED = "incomplete", "superseded", "removed"
STOP_NAME = "STOP"  # whoever makes this file in a run folder asks the run to stop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveResult:
    """What became of a checkpoint: its bytes and the seconds until it counted, or what kept it from being saved."""

    step: int
    folder: Path
    num_bytes: int
    seconds: float
    problem: str | None


def is_run_folder(folder: Path) -> bool:
    """Whether pretrain.py made this folder."""
    has_copy = checkpoint_step(folder) is not None or (folder / COMPLETE_NAME).is_file()  # as each checkpoint has
    return bool(_record_files(folder)) and not has_copy


def _record_files(folder: Path) -> list[Path]:
    """run.json, and its copies in the checkpoints."""
    places = (folder, *all_checkpoints(folder))
    return [path for place in places if (path := place / RUN_RECORD_NAME).is_file()]


def checkpoint_step(folder: Path) -> int | None:
    """The step of `checkpoint-STEP`, None for any other name."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else None


def optimizer_shards(folder: Path) -> list[Path]:
    """DeepSpeed's optimizer shards in a checkpoint, one a rank."""
    return sorted(folder.glob("global_step*/*_optim_states.pt"))


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return [folder for folder in all_checkpoints(run_dir) if incomplete_reason(folder) is None]


def all_checkpoints(run_dir: Path) -> list[Path]:
    """Whatever is called checkpoint-STEP, by its step."""
    steps = {step: path for path in run_dir.glob("checkpoint-*") if (step := checkpoint_step(path)) is not None}
    return [steps[step] for step in sorted(steps)]


def read_trainer_state(checkpoint: Path) -> TrainerState:
    """What the Trainer wrote last into a checkpoint: the step, and what callbacks keep."""
    from transformers import TrainerState  # and torch with it, which tools do without

    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def rotate_checkpoints(run_dir: Path, *, keep_last: int | None, keep_steps: Collection[int | None]) -> None:
    """Remove the oldest complete checkpoints beyond the last `keep_last`, but never those of `keep_steps`.

    Nor the newest that is known to be finite: it is what a run goes back to. As with the Trainer, None, 0 and less
    keep all of them.
    """
    _remove_leftovers(run_dir)
    if keep_last is None or keep_last <= 0:
        return
    complete = complete_checkpoints(run_dir)
    newest_finite = next((folder for folder in reversed(complete) if is_known_finite(folder)), None)
    for checkpoint in complete[: max(len(complete) - keep_last, 0)]:
        if checkpoint_step(checkpoint) not in keep_steps and checkpoint != newest_finite and _is_ours(checkpoint):
            _remove(quarantine(checkpoint, REMOVED))  # a kill meanwhile must not leave half a checkpoint


def _is_ours(folder: Path) -> bool:
    """Whether a folder was saved as the checkpoint of the step in its name, here and not elsewhere."""
    match = re.fullmatch(rf"checkpoint-(\d+)(\.{REMOVED}(-\d+)?)?", folder.name)
    try:
        return match is not None and not folder.is_symlink() and read_complete(folder).get("step") == int(match[1])
    except (OSError, ValueError):
        return False


def _remove(checkpoint: Path) -> None:
    """Remove a renamed checkpoint, complete.json last: what a kill leaves is known by it."""
    for path in checkpoint.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != COMPLETE_NAME:
            path.unlink()
    (checkpoint / COMPLETE_NAME).unlink()
    checkpoint.rmdir()


def _remove_leftovers(run_dir: Path) -> None:
    """Finish removals that a kill cut off; folders of that name that are not ours stay."""
    for leftover in run_dir.glob(f"checkpoint-*.{REMOVED}*"):
        if _is_ours(leftover):
            with suppress(OSError):
                _remove(leftover)


def quarantine(checkpoint: Path, ending: str) -> Path:
    """Rename a checkpoint so that nothing takes it for one; the new name is free."""
    names = (f"{checkpoint.name}.{ending}{number}" for number in ("", *(f"-{count}" for count in range(2, 10_000))))
    target = next(path for name in names if not (path := checkpoint.with_name(name)).exists())
    checkpoint.rename(target)
    return target


def quarantine_unusable(run_dir: Path, *, step: int) -> None:
    """Make way for a run that goes on from `step`: nothing else in its folder may look like a checkpoint of it.

    An incomplete one becomes checkpoint-STEP.incomplete; a complete one of a later step, which belongs to a run that
    is not gone on with, becomes checkpoint-STEP.superseded. Nothing is deleted but the rest of one whose removal was
    cut off: it could take the room of the next save, without which nothing would remove it.
    """
    _remove_leftovers(run_dir)
    for checkpoint in all_checkpoints(run_dir):
        problem = incomplete_reason(checkpoint)
        if problem is not None:
            logger.warning("%s: %s; set aside as %s", checkpoint, problem, quarantine(checkpoint, INCOMPLETE).name)
        elif (checkpoint_step(checkpoint) or 0) > step:
            target = quarantine(checkpoint, SUPERSEDED)
            logger.warning("%s: is later than step %d; set aside as %s", checkpoint, step, target.name)


def checkpoint_to_resume(run_dir: Path, resume: str) -> Path | None:
    """The checkpoint to go on from by --resume, None to start afresh.

    Raises:
        UserError: when it is no complete checkpoint, or none of a run's finished ones is complete any more.
    """
    if resume == "never":
        return None
    if resume == "auto":
        whole = complete_checkpoints(run_dir)
        if not whole:
            _check_none_lost(run_dir)
        return whole[-1] if whole else None
    checkpoint = Path(resume)
    problem = incomplete_reason(checkpoint)
    if problem is not None:
        raise UserError(f"--resume {checkpoint}: is no complete checkpoint ({problem}){_known(run_dir)}")
    return checkpoint


def _check_none_lost(run_dir: Path) -> None:
    """A run that was killed before its first save was over begins again; one that had saved or finished does not."""
    saved = sorted(path.parent for path in run_dir.glob(f"checkpoint-*/{COMPLETE_NAME}"))  # set aside ones too
    reasons = [f"{folder.name}: {incomplete_reason(folder) or 'set aside'}" for folder in saved]
    if (run_dir / MODEL_DIR_NAME).exists():
        reasons.append(f"{MODEL_DIR_NAME}/ is that of a finished run")
    if reasons:
        raise UserError(
            f"--resume auto: no checkpoint of {run_dir} is complete any more ({'; '.join(reasons)}); bring the files "
            "back, or start again in another --output_dir"
        )


def claim_run_folder(run_dir: Path, checkpoint: Path | None, *, resume: str) -> None:
    """Make the run folder, unless it holds something that this run does not go on with.

    A run that stopped before its first complete checkpoint begins again; before its first record it holds nothing.

    Raises:
        UserError: when it holds another run or something else, or cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        never_began = is_run_folder(run_dir) and not (run_dir / METRICS_NAME).exists()
        goes_on = checkpoint is not None and checkpoint.parent.resolve() == run_dir.resolve()
        begins_again = resume == "auto" and is_run_folder(run_dir) and not complete_checkpoints(run_dir)
        is_empty = is_effectively_empty(run_dir)
        if never_began or goes_on or begins_again or is_empty:
            return
    except OSError as error:
        raise UserError(
            f"--output_dir {run_dir}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    if is_run_folder(run_dir):
        raise UserError(
            f"--output_dir {run_dir}: holds a run already; leave out --resume to go on with it, or choose another "
            "folder"
        )
    raise UserError(f"--output_dir {run_dir}: holds something else already; choose another folder")


def is_effectively_empty(run_dir: Path) -> bool:
    """Whether a folder is empty, but for what a kill left at the start of a run."""
    return all(path.name in STARTUP_FILES for path in run_dir.iterdir())


def _known(run_dir: Path) -> str:
    checkpoints = complete_checkpoints(run_dir)
    return f"; the newest complete one is {checkpoints[-1]}" if checkpoints else ""


def newest_run(runs_dir: Path) -> Path | None:
    """The run folder in `runs_dir` that was started last."""
    runs = [folder for folder in runs_dir.glob("*") if is_run_folder(folder)]
    return max(runs, key=lambda folder: _record_files(folder)[0].stat().st_mtime, default=None)
