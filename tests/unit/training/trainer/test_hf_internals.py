"""The Trainer still has the private parts that are overridden, and calls callbacks as RunCallback expects."""

import inspect
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import CallbackHandler, TrainerControl

from pretraining.training.checkpoint.checkpointing import CheckpointingTrainer
from pretraining.training.trainer import hf_internals
from pretraining.training.trainer.hf_internals import EVENTS, RunCallback, TrainerInternals

# Overridden methods that name a parameter differently: theirs, ours.
RENAMED = {"_prepare_for_training": {"resume_from_checkpoint": "checkpoint"}}
ATTRIBUTES = ("_loss_shifts_labels", "_tr_loss", "_globalstep_last_logged")


@pytest.mark.parametrize("ours", [TrainerInternals, CheckpointingTrainer])
def test_every_overridden_private_method_exists_with_the_same_parameters(ours: type) -> None:
    added = {"_reload", "_weights_part"}
    overridden = {name for name in vars(ours) if name.startswith("_") and not name.startswith("__")} - added
    methods = {name for name in overridden if callable(vars(ours)[name])}
    assert {name for name in methods if not hasattr(Trainer, name)} == set()
    for name in methods:
        parameters = inspect.signature(vars(ours)[name]).parameters.values()
        if not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
            theirs = inspect.signature(getattr(Trainer, name)).parameters
            renamed = RENAMED.get(name, {})
            assert [parameter.name for parameter in parameters] == [renamed.get(other, other) for other in theirs], name


def test_the_review_was_of_the_installed_version() -> None:
    installed = ".".join(version("transformers").split(".")[:2])
    assert f"Trainer ({installed}):" in (hf_internals.__doc__ or ""), "review each method first"


def test_the_private_attributes_are_those_of_the_trainer() -> None:
    source = inspect.getsource(Trainer)
    assert [name for name in ATTRIBUTES if f"self.{name} = " not in source] == []


def test_a_callback_is_called_with_state_and_control() -> None:
    calls: list[tuple[Any, ...]] = []

    class Counting(RunCallback):
        def step_end(self, state: Any, control: Any) -> None:
            calls.append((state, control))

    class More(Counting):
        def save(self, state: Any, control: Any) -> None:
            calls.append((state, "save"))

    state, control = SimpleNamespace(), TrainerControl()
    handler = CallbackHandler([More()], None, None, None, None)
    handler.on_step_end(None, state, control)
    handler.on_substep_end(None, state, control)
    handler.on_save(None, state, control)
    assert calls == [(state, control), (state, "save")]
    assert all(hasattr(TrainerCallback, f"on_{event}") for event in EVENTS)
