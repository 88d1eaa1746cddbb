"""Export the model: at the end of a run and, with --export_every_tokens, during it.

An export is complete only after its folder was loaded again and gave the losses of the model in training.
"""

import logging
import shutil
from pathlib import Path

import torch
from transformers import TrainerControl, TrainerState

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
from pretraining.training.distributed.collectives import broadcast_object, is_main_process
from pretraining.training.trainer.hf_internals import RunCallback
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)

EXPORTS_DIR_NAME = "exports"
NO_CHECKPOINT = "no checkpoint of the last step was saved (--save_strategy), so rerunning the command trains again"


def export_model(trainer: PretrainingTrainer, model_dir: Path) -> str:
    """Gather the weights, write the model and check it; called on every process, the main process writes.

    The folder gets its name after the check, and replaces an earlier model of that name. Returns a line for the log.

    Raises:
        UserError: on every process, when it cannot be written or differs from the model in training.
    """
    reference = reference_losses(trainer)
    weights = trainer.whole_weights()
    problem = broadcast_object(_export_problem(trainer, model_dir, weights, reference) if is_main_process() else None)
    if problem is not None:
        raise UserError(problem)
    return f"exported model: {model_dir} (loaded again: {reference.description}, equal to the model in training)"


def export_at_end(trainer: PretrainingTrainer) -> str:
    """Export the model of the run; called on every process. Returns a line for the log.

    Raises:
        UserError: when the export failed, with what is left of the training.
    """
    run_dir, step = trainer.run_config.run_dir, trainer.state.global_step
    try:
        return export_model(trainer, run_dir / MODEL_DIR_NAME)
    except UserError as error:
        checkpoint = run_dir / f"checkpoint-{step}"
        has_checkpoint = incomplete_reason(checkpoint) is None
        left = f"{checkpoint} is complete; rerun the command to export again" if has_checkpoint else NO_CHECKPOINT
        raise UserError(f"{error}; {left}") from None


def quarantine_exports(run_dir: Path, *, step: int) -> None:
    """Rename the exports of later steps, where another run resumes from `step`: its weights differ."""
    for folder in (run_dir / EXPORTS_DIR_NAME).glob("step-*"):
        number = folder.name.removeprefix("step-")
        if number.isdigit() and int(number) > step:
            logger.warning("%s: belongs to another run; renamed to %s", folder, quarantine(folder, SUPERSEDED).name)


def quarantine_model(run_dir: Path) -> None:
    """Rename the model of a run that now trains to another end: programs would take it for the newest weights."""
    folder = run_dir / MODEL_DIR_NAME
    if folder.exists():
        name = quarantine(folder, SUPERSEDED).name
        logger.warning("%s: is of a run that ended earlier or otherwise; renamed to %s", folder, name)


class ExportCallback(RunCallback):
    """Exports after the first step that reaches each multiple of --export_every_tokens, and keeps all exports."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer
        self._every_tokens = trainer.run_config.arguments.durability.export_every_tokens
        self._last_step = 0

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Remember the first step."""
        self._last_step = state.global_step

    def step_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Export if it is due; after a rollback, delete the export of the step before: its blocks are skipped now."""
        if self._every_tokens is None:
            return
        step = state.global_step
        if step < self._last_step:
            if state.is_world_process_zero:
                shutil.rmtree(self._folder(self._last_step), ignore_errors=True)
        elif step > self._last_step and self._exports_due(step) > self._exports_due(step - 1):
            self._export(step)
        self._last_step = step

    def _exports_due(self, step: int) -> int:
        """How many multiples of --export_every_tokens the run has reached after a step."""
        run = self._trainer.run_config
        return run.num_consumed(step) * run.batch.block_length // (self._every_tokens or 1)

    def _export(self, step: int) -> None:
        folder = self._folder(step)
        if broadcast_object(folder.exists()):
            logger.info("exported model: %s exists already, and is kept", folder)
            return
        if not self._trainer.check_finite():
            return
        try:
            with self._trainer.meter.pause("save"):
                logger.info(export_model(self._trainer, folder))
                if is_main_process():
                    try_write_card(self._trainer.run_config, folder, step)
        except UserError as error:
            logger.warning("step %d: export failed; training continues: %s", step, error)

    def _folder(self, step: int) -> Path:
        return self._trainer.run_config.run_dir / EXPORTS_DIR_NAME / f"step-{step}"


def _export_problem(
    trainer: PretrainingTrainer, model_dir: Path, weights: dict[str, torch.Tensor], reference: ReferenceLosses
) -> str | None:
    """Write, check and publish the model; returns what went wrong, None for success."""
    name = non_finite_weight(weights)
    if name is not None:
        return f"{model_dir}: {name} of the model in training has NaN or Inf values, so it is not exported"
    partial = partial_folder(model_dir)
    try:
        make_partial_dir(partial)
        trainer.model.save_pretrained(partial, state_dict=dict(weights))  # it empties the dictionary as it writes
        trainer.processing_class.save_pretrained(partial)
        finalize(partial)
        problem = verify_export(trainer, partial, weights, reference)
        if problem is not None:
            return f"{partial}: differs from the model in training: {problem}; it is kept, and {model_dir} is unchanged"
        publish(partial, model_dir)
    except Exception as error:  # whatever it is, the other processes wait for an answer
        shutil.rmtree(partial, ignore_errors=True)  # half a model takes the disk space of a checkpoint
        return f"{model_dir}: cannot be written ({getattr(error, 'strerror', None) or error})"
    return None
