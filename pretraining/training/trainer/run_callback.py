"""The base class of this suite's callbacks."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def _forward(event: str) -> Callable[..., None]:
    """The Trainer's method of an event, which calls the short one of this suite."""

    def call(
        self: "RunCallback", _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_objects: Any
    ) -> None:
        getattr(self, event)(state, control)

    return call


class RunCallback(TrainerCallback):
    """A TrainerCallback whose methods take `(state, control)` only; a callback has its trainer for everything else.

    The Trainer calls `on_step_end(args, state, control, **objects)`, which calls `step_end(state, control)`. A callback
    that needs the metrics of an evaluation overrides `on_evaluate` itself.
    """

    on_train_begin = _forward("train_begin")
    on_step_begin = _forward("step_begin")
    on_substep_end = _forward("substep_end")
    on_step_end = _forward("step_end")
    on_prediction_step = _forward("prediction_step")
    on_evaluate = _forward("evaluate")
    on_save = _forward("save")
    on_epoch_end = _forward("epoch_end")
    on_train_end = _forward("train_end")

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Before the first step; the state of the checkpoint is loaded."""

    def step_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Before the first micro step of a step."""

    def substep_end(self, state: TrainerState, control: TrainerControl) -> None:
        """After each micro step but the last of a step."""

    def step_end(self, state: TrainerState, control: TrainerControl) -> None:
        """After the optimizer's update, before the log, evaluation and save of the step."""

    def prediction_step(self, state: TrainerState, control: TrainerControl) -> None:
        """Before each batch of an evaluation."""

    def evaluate(self, state: TrainerState, control: TrainerControl) -> None:
        """After an evaluation."""

    def save(self, state: TrainerState, control: TrainerControl) -> None:
        """After a checkpoint was started."""

    def epoch_end(self, state: TrainerState, control: TrainerControl) -> None:
        """After the last step, or the step at which the run stops."""

    def train_end(self, state: TrainerState, control: TrainerControl) -> None:
        """After the training, also of a run that stops early."""
