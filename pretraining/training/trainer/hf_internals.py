"""The interface to transformers' Trainer (5.23): the base class of callbacks, and all private parts that training uses.

One file to review at an upgrade. The private parts of saving and loading are in checkpoint/checkpointing.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    masking_utils,
)

from pretraining.training.checkpoint.checkpointing import CheckpointingTrainer
from pretraining.training.config.run_config import RunConfig
from pretraining.training.data.batch import Batch
from pretraining.training.distributed.deepspeed_internals import (
    avoid_host_waits,
    forget_gradients_after_step,
    remember_signatures,
)
from pretraining.training.metrics.gradient_norms import GradientNorms

# The methods that a RunCallback can define.
EVENTS = (
    "train_begin",  # the state of the checkpoint is loaded
    "step_begin",
    "substep_end",  # after each micro step but the last of a step
    "step_end",
    "prediction_step",  # before each batch of an evaluation
    "evaluate",
    "save",  # after a checkpoint was started
    "epoch_end",
    "train_end",  # also of a run that stops early
)


class RunCallback(TrainerCallback):
    """A TrainerCallback whose methods take `(state, control)`; it has its trainer for everything else.

    A subclass defines methods of `EVENTS`: the Trainer's `on_step_end(args, state, control, **objects)` calls
    `step_end(state, control)`. One that needs the metrics of an evaluation defines `on_evaluate` itself.
    """

    def __init_subclass__(cls) -> None:
        for event in set(EVENTS).intersection(vars(cls)):
            setattr(cls, f"on_{event}", _forward(event))


def _forward(event: str) -> Callable[..., None]:
    def call(
        self: RunCallback, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_objects: Any
    ) -> None:
        getattr(self, event)(state, control)

    return call


class TrainerInternals(CheckpointingTrainer):
    """Overrides private methods of the Trainer and writes its private attributes; each with the reason."""

    _group_settings: list[dict[str, Any]]  # of the optimizer as the flags of this start make it

    def __init__(self, run_config: RunConfig, **trainer_arguments: Any) -> None:
        super().__init__(**trainer_arguments)
        self.run_config = run_config
        # The Trainer counts the tokens of a step from labels, and would shift them; ours are shifted already.
        self._loss_shifts_labels = False

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare as before, and have DeepSpeed's engine, which exists from then on, wait for nothing, and watch it."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        avoid_host_waits(self.model_wrapped)
        forget_gradients_after_step(self.model_wrapped)
        remember_signatures(self.model)
        self.gradient_norms = GradientNorms(self.model_wrapped)
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load them, then apply the flags of this start: a checkpoint has the settings that it was saved with."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            for group, values in zip(self.optimizer.param_groups, self._group_settings, strict=True):
                group |= values
            self.run_config.schedule.put_into(self.lr_scheduler, num_done=self.lr_scheduler.last_epoch)

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        """Copy a micro batch to the device while the GPU computes; the Trainer's own copy waits for it."""
        return {name: values.to(self.args.device, non_blocking=True) for name, values in inputs.items()}

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        """The tokens that all processes predict in a step: counted, and gathered, only where blocks differ in it."""
        batch = self.run_config.batch
        if self.run_config.predicts_alike:
            return torch.tensor(batch.blocks * (batch.block_length - 1), device=device)
        return super()._get_num_items_in_batch(batch_samples, device)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether --save_strategy best saves now; an abandoned evaluation has no metrics and changes nothing."""
        return super()._determine_best_metric(metrics, trial) if metrics else self.control.should_save

    def note_evaluation(self, metrics: dict[str, float]) -> None:
        """Compare an evaluation with the best one, which the Trainer does not do for --eval_on_start."""
        self._determine_best_metric(metrics=metrics, trial=None)

    def _reload(self, checkpoint: Path, step: int) -> None:
        """Load weights, optimizer, schedule, random state and step of a checkpoint in the middle of a run."""
        self.load(str(checkpoint))
        self._load_rng_state(str(checkpoint))
        self.state.global_step = step
        self.state.log_history = [record for record in self.state.log_history if record["step"] <= step]
        # The sum of the losses since the last log, and its step: of steps that are made again.
        self._tr_loss.zero_()
        self._globalstep_last_logged = step


@contextmanager
def packing_check(*, is_on: bool) -> Iterator[None]:
    """Skip the search for positions that restart, after which the host waits for the GPU (masking_utils.py).

    It is needed to mask documents. Without masks no position restarts, so nothing would be found.
    """
    search = masking_utils.find_packed_sequence_indices
    if not is_on:
        masking_utils.find_packed_sequence_indices = lambda _positions: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = search


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use eager attention, which takes padding on the left; transformers has no public way to change it for a while."""
    implementation = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = implementation
