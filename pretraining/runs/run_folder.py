"""Run folders and their checkpoints: which exist, which are complete, which is the newest."""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.runs.checksums import COMPLETE_NAME, incomplete_reason, is_known_finite, read_complete

if TYPE_CHECKING:
    from transformers import TrainerState

RUN_RECORD_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
TRAINER_STATE_NAME = "trainer_state.json"
REPORT_NAME = "report.html"
CURVES_NAME = "curves.png"
MODEL_DIR_NAME = "model"
PROFILE_DIR_NAME = "profile"  # of --profile
TOKENIZER_DIR_NAME = "tokenizer"
BLOCKS_DIR_NAME = "blocks"  # which finetune.py builds from conversations
# While finetune.py builds them: .partial can be an unfinished store of preprocess.py.
PARTIAL_BLOCKS_SUFFIX = ".partial-conversations"
TOKEN_NAME = "run.token"  # by which the processes check that all see the same folder
# Suffixes of renamed checkpoints.
INCOMPLETE, SUPERSEDED, REMOVED = "incomplete", "superseded", "removed"
STOP_NAME = "STOP"  # a run stops when this file is created in its folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveResult:
    """The outcome of a save: bytes and seconds until the checkpoint was complete, or the problem."""

    step: int
    folder: Path
    num_bytes: int
    seconds: float
    problem: str | None


def is_run_folder(folder: Path) -> bool:
    """Whether pretrain.py created this folder."""
    is_checkpoint = checkpoint_step(folder) is not None or (folder / COMPLETE_NAME).is_file()  # with a copy of run.json
    return bool(_record_files(folder)) and not is_checkpoint


def _record_files(folder: Path) -> list[Path]:
    """run.json, and its copies in the checkpoints."""
    places = (folder, *all_checkpoints(folder))
    return [path for place in places if (path := place / RUN_RECORD_NAME).is_file()]


def checkpoint_step(folder: Path) -> int | None:
    """The step of `checkpoint-STEP`, None for any other name."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else None


def optimizer_shards(folder: Path) -> list[Path]:
    """DeepSpeed's optimizer shards in a checkpoint, one per rank."""
    return sorted(folder.glob("global_step*/*_optim_states.pt"))


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return [folder for folder in all_checkpoints(run_dir) if incomplete_reason(folder) is None]


def all_checkpoints(run_dir: Path) -> list[Path]:
    """Everything named checkpoint-STEP, in the order of steps."""
    steps = {step: path for path in run_dir.glob("checkpoint-*") if (step := checkpoint_step(path)) is not None}
    return [steps[step] for step in sorted(steps)]


def read_trainer_state(checkpoint: Path) -> TrainerState:
    """The Trainer's state in a checkpoint: the step, and the state of callbacks."""
    from transformers import TrainerState  # imports torch, which tools do not need

    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def rotate_checkpoints(run_dir: Path, *, keep_last: int | None, keep_steps: Collection[int | None]) -> None:
    """Remove the oldest complete checkpoints beyond the last `keep_last`, but never those of `keep_steps`.

    Also keep the newest that is known to be finite, for rollbacks. As in the Trainer, None, 0 and less keep all.
    """
    _remove_leftovers(run_dir)
    if keep_last is None or keep_last <= 0:
        return
    complete = complete_checkpoints(run_dir)
    newest_finite = next((folder for folder in reversed(complete) if is_known_finite(folder)), None)
    for checkpoint in complete[: max(len(complete) - keep_last, 0)]:
        if checkpoint_step(checkpoint) not in keep_steps and checkpoint != newest_finite and _is_ours(checkpoint):
            _remove(quarantine(checkpoint, REMOVED))  # a kill must not leave a partial checkpoint-STEP


def _is_ours(folder: Path) -> bool:
    """Whether a folder was saved as the checkpoint of the step in its name, here and not elsewhere."""
    match = re.fullmatch(rf"checkpoint-(\d+)(\.{REMOVED}(-\d+)?)?", folder.name)
    try:
        return match is not None and not folder.is_symlink() and read_complete(folder).get("step") == int(match[1])
    except (OSError, ValueError):
        return False


def _remove(checkpoint: Path) -> None:
    """Remove a renamed checkpoint, complete.json last: it identifies what a kill leaves."""
    for path in checkpoint.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != COMPLETE_NAME:
            path.unlink()
    (checkpoint / COMPLETE_NAME).unlink()
    checkpoint.rmdir()


def _remove_leftovers(run_dir: Path) -> None:
    """Finish removals that were interrupted; folders of such names that are not ours stay."""
    for leftover in run_dir.glob(f"checkpoint-*.{REMOVED}*"):
        if _is_ours(leftover):
            with suppress(OSError):
                _remove(leftover)


def quarantine(checkpoint: Path, ending: str) -> Path:
    """Rename a checkpoint to a free name that nothing takes for a checkpoint, and return that."""
    return checkpoint.rename(free_name(checkpoint, f".{ending}"))


def free_name(path: Path, suffix: str) -> Path:
    """The first of the numbered names that does not exist."""
    return next(target for target in numbered_names(path, suffix) if not os.path.lexists(target))


def numbered_names(path: Path, suffix: str) -> Iterator[Path]:
    """The path with the suffix, then with the suffix and -2, -3 and so on."""
    yield path.with_name(path.name + suffix)
    yield from (path.with_name(f"{path.name}{suffix}-{number}") for number in itertools.count(2))


def quarantine_unusable(run_dir: Path, *, step: int) -> None:
    """Rename what could be mistaken for a checkpoint of a run that resumes from `step`.

    An incomplete one becomes checkpoint-STEP.incomplete, a complete one of a later step checkpoint-STEP.superseded.
    Only the rest of a checkpoint whose removal was interrupted is deleted: the next save needs its space.
    """
    _remove_leftovers(run_dir)
    for checkpoint in all_checkpoints(run_dir):
        problem = incomplete_reason(checkpoint)
        if problem is not None:
            logger.warning("%s: %s; renamed to %s", checkpoint, problem, quarantine(checkpoint, INCOMPLETE).name)
        elif (checkpoint_step(checkpoint) or 0) > step:
            target = quarantine(checkpoint, SUPERSEDED)
            logger.warning("%s: is later than step %d; renamed to %s", checkpoint, step, target.name)


def newest_run(runs_dir: Path) -> Path | None:
    """The run folder in `runs_dir` that was started last."""
    runs = [folder for folder in runs_dir.glob("*") if is_run_folder(folder)]
    return max(runs, key=lambda folder: _record_files(folder)[0].stat().st_mtime, default=None)
