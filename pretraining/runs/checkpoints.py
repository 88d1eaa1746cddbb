"""Run folders and their checkpoints: which are there, which are whole, which is the newest."""

import re
import shutil
from collections.abc import Collection
from pathlib import Path

from transformers import TrainerState

from pretraining.cli.errors import UserError

RUN_RECORD_NAME = "run.json"
METRICS_NAME = "metrics.jsonl"
TRAINER_STATE_NAME = "trainer_state.json"
MODEL_DIR_NAME = "model"
TOKENIZER_DIR_NAME = "tokenizer"
RESUME_NEWEST_WORDS = ("last", "true", "True")


def is_run_folder(folder: Path) -> bool:
    """Whether pretrain.py made this folder."""
    return (folder / RUN_RECORD_NAME).is_file()


def checkpoint_step(folder: Path) -> int | None:
    """The step of `checkpoint-STEP`, None for any other name."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else None


def checkpoint_problem(folder: Path) -> str | None:
    """Why this is no whole checkpoint, None when it is one.

    The Trainer writes trainer_state.json after all ranks have written their shards; DeepSpeed's own `latest` can
    exist while ranks are still writing. The other ranks' random states may come later, so there must be one for each
    shard.
    """
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / TRAINER_STATE_NAME).is_file():
        return "trainer_state.json is missing, the save did not finish"
    shards = optimizer_shards(folder)
    if not shards:
        return "it has no ZeRO shards of the optimizer"
    num_random_states = len(list(folder.glob("rng_state*.pth")))
    if num_random_states != len(shards):
        return f"it has {len(shards)} optimizer shards and {num_random_states} random states"
    return None


def optimizer_shards(folder: Path) -> list[Path]:
    """DeepSpeed's optimizer shards in a checkpoint, one a rank."""
    return sorted(folder.glob("global_step*/*_optim_states.pt"))


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    steps = {step: path for path in run_dir.glob("checkpoint-*") if (step := checkpoint_step(path)) is not None}
    return [steps[step] for step in sorted(steps) if checkpoint_problem(steps[step]) is None]


def read_trainer_state(checkpoint: Path) -> TrainerState:
    """What the Trainer wrote last into a checkpoint: the step, and what callbacks keep."""
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def rotate_checkpoints(run_dir: Path, *, step: int, keep_last: int | None, keep_steps: Collection[int | None]) -> None:
    """Remove the oldest complete checkpoints beyond the last `keep_last`, but never those of `keep_steps`.

    Those after `step`, where the run is, were left by a run that this one went back in: they do not count, or the
    checkpoint that was just saved would be removed for them.
    """
    if keep_last is None:
        return
    ours = [checkpoint for checkpoint in whole_checkpoints(run_dir) if (checkpoint_step(checkpoint) or 0) <= step]
    for checkpoint in ours[: -max(1, keep_last)]:
        if checkpoint_step(checkpoint) not in keep_steps:
            shutil.rmtree(checkpoint)


def checkpoint_to_resume(run_dir: Path, resume_from: str | None, *, num_processes: int) -> Path | None:
    """The checkpoint to go on from, None to start afresh.

    Raises:
        UserError: when it is no complete checkpoint, or one of another number of processes.
    """
    if resume_from is None:
        return None
    if resume_from in RESUME_NEWEST_WORDS:
        checkpoints = whole_checkpoints(run_dir)
        if not checkpoints:
            raise UserError(
                f"--resume_from_checkpoint {resume_from}: {run_dir} has no complete checkpoint; leave the flag out"
            )
        checkpoint = checkpoints[-1]
    else:
        checkpoint = Path(resume_from)
        problem = checkpoint_problem(checkpoint)
        if problem is not None:
            raise UserError(f"--resume_from_checkpoint {checkpoint}: is no checkpoint ({problem}){_known(run_dir)}")
    saved_by = len(optimizer_shards(checkpoint))
    if saved_by != num_processes:
        raise UserError(
            f"--resume_from_checkpoint {checkpoint}: was saved by {saved_by} processes, this run has {num_processes}; "
            f"start with --num_gpus={saved_by}"
        )
    return checkpoint


def claim_run_folder(run_dir: Path, checkpoint: Path | None) -> None:
    """Make the run folder, unless it holds something that this run does not go on with.

    A run that stopped before its first record holds nothing to lose.

    Raises:
        UserError: when it holds another run or something else, or cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        never_began = is_run_folder(run_dir) and not (run_dir / METRICS_NAME).exists()
        goes_on = checkpoint is not None and checkpoint.resolve().parent == run_dir.resolve()
        if never_began or goes_on or not any(run_dir.iterdir()):
            return
    except OSError as error:
        raise UserError(
            f"--output_dir {run_dir}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    if is_run_folder(run_dir):
        raise UserError(
            f"--output_dir {run_dir}: holds a run already; add --resume_from_checkpoint last to go on with it, or "
            "choose another folder"
        )
    raise UserError(f"--output_dir {run_dir}: holds something else already; choose another folder")


def _known(run_dir: Path) -> str:
    checkpoints = whole_checkpoints(run_dir)
    return f"; the newest complete one is {checkpoints[-1]}" if checkpoints else ""


def newest_run(runs_dir: Path) -> Path | None:
    """The run folder in `runs_dir` that was started last."""
    runs = [folder for folder in runs_dir.glob("*") if is_run_folder(folder)]
    return max(runs, key=lambda folder: (folder / RUN_RECORD_NAME).stat().st_mtime, default=None)
