"""Exports of the weights: at the end of a run, and, by --export_every_tokens, while it trains.

An export is done when the folder was opened again and has the losses of the model in training.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.errors import UserError
from pretraining.runs.checksums import incomplete_reason
from pretraining.runs.export.publish import finalize, make_partial_dir, partial_folder, publish
from pretraining.runs.run_folder import MODEL_DIR_NAME, SUPERSEDED, quarantine
from pretraining.training.callbacks.export_check import (
    ReferenceLosses,
    non_finite_weight,
    reference_losses,
    verify_export,
)
from pretraining.training.callbacks.model_card import try_write_card
from pretraining.training.distributed.collectives import broadcast_object
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)

EXPORTS_DIR_NAME = "exports"
NOTHING_LEFT = "no checkpoint of the last step was saved (--save_strategy), so the same command trains again"


def export_model(trainer: PretrainingTrainer, model_dir: Path) -> str:
    """Gather the weights, write the model and check it; called on every process, the first one writes.

    The folder takes its name when it was checked; a model of that name is replaced. Returns a line for the log.

    Raises:
        UserError: on every process, when it cannot be written or is not the model in training.
    """
    live = reference_losses(trainer)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    problem = None
    if trainer.is_world_process_zero():
        problem = _export_problem(trainer, model_dir, weights, live)
    problem = broadcast_object(problem)
    if problem is not None:
        raise UserError(problem)
    return f"exported model: {model_dir} (opened again: {live.described}, as the model in training)"


def export_at_end(trainer: PretrainingTrainer) -> str:
    """Export the model of the run; called on every process. Returns a line for the log.

    Raises:
        UserError: when it could not be, with what is left of the training.
    """
    run_dir, step = trainer.plan.run_dir, trainer.state.global_step
    try:
        return export_model(trainer, run_dir / MODEL_DIR_NAME)
    except UserError as error:
        checkpoint = run_dir / f"checkpoint-{step}"
        has_checkpoint = incomplete_reason(checkpoint) is None
        left = f"{checkpoint} is whole, and the same command exports again" if has_checkpoint else NOTHING_LEFT
        raise UserError(f"{error}; {left}") from None


def set_aside_exports(run_dir: Path, *, step: int) -> None:
    """Make way for those of a run that goes on from `step` as another one: they are not made of its weights."""
    for folder in (run_dir / EXPORTS_DIR_NAME).glob("step-*"):
        number = folder.name.removeprefix("step-")
        if number.isdigit() and int(number) > step:
            logger.warning("%s: is of another run; set aside as %s", folder, quarantine(folder, SUPERSEDED).name)


class ExportCallback(TrainerCallback):
    """Exports at the end of the first step that reaches each multiple of --export_every_tokens, and keeps them all.

    It must stand after the fault handler, which may take a step back.
    """

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer
        self._every_tokens = trainer.plan.arguments.durability.export_every_tokens
        self._last_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember where the run goes on."""
        self._last_step = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Export if it is time."""
        if self._every_tokens is None:
            return
        step = state.global_step
        if step < self._last_step:
            self._forget(self._last_step)
        elif step > self._last_step and self._exports_due(step) > self._exports_due(step - 1):
            self._export(step)
        self._last_step = step

    def _exports_due(self, step: int) -> int:
        """How many multiples of the tokens were reached at the end of a step."""
        plan = self._trainer.plan
        return plan.num_consumed(step) * plan.batch.block_length // (self._every_tokens or 1)

    def _export(self, step: int) -> None:
        folder = self._folder(step)
        if broadcast_object(folder.exists()):
            logger.info("exported model: %s is there from before, and kept", folder)
            return
        if not self._trainer.check_finite():
            return
        try:
            with self._trainer.meter.pause("save"):
                logger.info(export_model(self._trainer, folder))
                if self._trainer.is_world_process_zero():
                    try_write_card(self._trainer.plan, folder, step)
        except UserError as error:
            logger.warning("step %d: no export, and the run goes on: %s", step, error)

    def _forget(self, step: int) -> None:
        """The run went back from a later step: the export of this one, if any, has the blocks that are skipped now."""
        if self._trainer.is_world_process_zero():
            shutil.rmtree(self._folder(step), ignore_errors=True)

    def _folder(self, step: int) -> Path:
        return self._trainer.plan.run_dir / EXPORTS_DIR_NAME / f"step-{step}"


def _export_problem(
    trainer: PretrainingTrainer, model_dir: Path, weights: dict[str, torch.Tensor], live: ReferenceLosses
) -> str | None:
    """Write and check the model; what went wrong, None when it has taken its name."""
    name = non_finite_weight(weights)
    if name is not None:
        return f"{model_dir}: {name} of the model in training has NaN or Inf values, so it is not exported"
    partial = partial_folder(model_dir)
    try:
        make_partial_dir(partial)
        trainer.model.save_pretrained(partial, state_dict=dict(weights))  # of which it forgets what it has written
        trainer.processing_class.save_pretrained(partial)
        finalize(partial)
        problem = verify_export(trainer, partial, weights, live)
        if problem is not None:
            return f"{partial}: is not the model in training: {problem}; it stays there, and {model_dir} as it was"
        publish(partial, model_dir)
    except Exception as error:  # whatever it is, the other processes wait for an answer
        shutil.rmtree(partial, ignore_errors=True)  # half a model takes the room of a checkpoint
        return f"{model_dir}: cannot be written ({getattr(error, 'strerror', None) or error})"
    return None
