"""The Trainer still has the private parts that are overridden, and calls callbacks as RunCallback expects."""

import inspect
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, masking_utils
from transformers.trainer_callback import CallbackHandler, TrainerControl

from pretraining.training.checkpoint.checkpointing import CheckpointingTrainer
from pretraining.training.trainer import hf_internals
from pretraining.training.trainer.hf_internals import EVENTS, RunCallback, TrainerInternals, packing_check

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


def test_positions_that_do_not_restart_are_not_searched() -> None:
    """What the search would find is None, so attention is the same; and it is there again afterwards."""
    search, positions = masking_utils.find_packed_sequence_indices, torch.arange(8)[None]
    restarting = positions % 4
    assert search(positions) is None
    assert search(restarting) is not None
    model = LlamaForCausalLM(
        LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=8, num_attention_heads=1)
    )
    with torch.no_grad(), packing_check(is_on=False):
        assert masking_utils.find_packed_sequence_indices(restarting) is None
        found = model(input_ids=positions, use_cache=False).logits
    with packing_check(is_on=True):
        assert masking_utils.find_packed_sequence_indices is search
    assert masking_utils.find_packed_sequence_indices is search
    with torch.no_grad():
        assert torch.equal(model(input_ids=positions, use_cache=False).logits, found)


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
