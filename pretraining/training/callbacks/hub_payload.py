"""What a run sends to the Hub, gathered in a folder of its own, so that rotation cannot take it away meanwhile.

Large files are hard links: they take room only when the checkpoint that they are of is gone.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from transformers.trainer_utils import HubStrategy

from pretraining.hub.push_queue import UploadPayload
from pretraining.runs.export.publish import finalize
from pretraining.runs.run_folder import CURVES_NAME, MODEL_DIR_NAME, REPORT_NAME, complete_checkpoints
from pretraining.training.callbacks.model_card import write_card_of
from pretraining.training.config.run_config import RunConfig

PUSH_DIR_NAME = "push"
LAST_CHECKPOINT_NAME = "last-checkpoint"  # as the Trainer calls it
WEIGHTS = "model*.safetensors*"
# Of a checkpoint, those that a model folder has beside its weights; they are changed for everybody's tools.
SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
REPORT_NAMES = (REPORT_NAME, CURVES_NAME)


def clear_parcels(run_dir: Path) -> None:
    """Remove what a kill has left of them, and nothing else that is there."""
    for folder in (run_dir / PUSH_DIR_NAME).glob("step-*"):
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        (run_dir / PUSH_DIR_NAME).rmdir()


def parcel_of_checkpoint(
    plan: RunConfig, checkpoint: Path, step: int, *, strategy: str, repository: str
) -> UploadPayload:
    """The weights of a complete checkpoint as a model, and by `strategy` the checkpoint itself."""
    folder = _begin(plan, step)
    for path in checkpoint.glob(WEIGHTS):
        _link(path, folder / path.name)
    for name in SMALL_FILES:
        shutil.copyfile(checkpoint / name, folder / name)
    finalize(folder)
    return _finish(plan, folder, step, [checkpoint], strategy=strategy, repository=repository)


def final_payload(plan: RunConfig, step: int, *, strategy: str, repository: str) -> UploadPayload:
    """The exported model, and by `strategy` the newest checkpoint or all that there are."""
    folder = _begin(plan, step)
    for path in (plan.run_dir / MODEL_DIR_NAME).iterdir():
        if path.match(WEIGHTS):
            _link(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)  # the card is written anew
    return _finish(plan, folder, step, complete_checkpoints(plan.run_dir), strategy=strategy, repository=repository)


def _begin(plan: RunConfig, step: int) -> Path:
    folder = plan.run_dir / PUSH_DIR_NAME / f"step-{step}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _finish(
    plan: RunConfig, folder: Path, step: int, checkpoints: Sequence[Path], *, strategy: str, repository: str
) -> UploadPayload:
    what, replaces = [f"model of step {step}"], [WEIGHTS]
    for name in REPORT_NAMES:
        if (plan.run_dir / name).is_file():
            shutil.copyfile(plan.run_dir / name, folder / name)
    if strategy == HubStrategy.CHECKPOINT and checkpoints:
        _link_all(checkpoints[-1], folder / LAST_CHECKPOINT_NAME)
        what.append(f"{checkpoints[-1].name} as {LAST_CHECKPOINT_NAME}")
        replaces.append(f"{LAST_CHECKPOINT_NAME}/*")
    elif strategy == HubStrategy.ALL_CHECKPOINTS:
        for checkpoint in checkpoints:
            _link_all(checkpoint, folder / checkpoint.name)
            what.append(checkpoint.name)
    write_card_of(plan, folder, step, repository=repository)
    return UploadPayload(step, ", ".join(what), folder, replaces)


def _link_all(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str | Path, target: str | Path) -> None:
    """Give a file, which nobody writes to any more, a second name; a copy where the file system has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
