"""A run that begins wrong is stopped at its first step."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.errors import UserError
from pretraining.training.callbacks.sanity_checks import (
    check_first_loss,
    check_fresh_weights,
    check_rotary_positions,
    expected_first_loss,
)

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def config(**changes: object) -> LlamaConfig:
    return LlamaConfig(vocab_size=1000, attention_bias=True, **{**SHAPE, **changes})


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(config())


def test_fresh_weights_pass(model: LlamaForCausalLM) -> None:
    check_fresh_weights(model)
    check_fresh_weights(model.to(torch.bfloat16))
    check_rotary_positions(LlamaForCausalLM(config()))


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (
            "model.layers.1.mlp.up_proj.weight",
            lambda weight: weight.mul_(1.1),
            "standard deviation of 0.0219",
        ),
        ("model.embed_tokens.weight", lambda weight: weight.uniform_(-0.1, 0.1), "standard deviation of 0.05"),
        ("model.norm.weight", lambda weight: weight.mul_(1.01), "are not all 1"),
        ("model.layers.0.self_attn.q_proj.bias", lambda bias: bias.add_(0.1), "are not all 0"),
    ],
)
def test_weights_that_were_drawn_otherwise_are_refused(
    model: LlamaForCausalLM, name: str, change, expected: str
) -> None:
    with torch.no_grad():
        change(model.get_parameter(name))
    with pytest.raises(UserError) as caught:
        check_fresh_weights(model)
    assert f"the fresh weights of {name} " in str(caught.value)
    assert expected in str(caught.value)


def test_rotary_frequencies_in_bf16_are_refused(model: LlamaForCausalLM) -> None:
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.bfloat16()
    with pytest.raises(UserError, match=r"inv_freq of the rotary positions is torch\.bfloat16"):
        check_rotary_positions(model)


@pytest.mark.parametrize("hidden_size", [64, 512])
@pytest.mark.parametrize("initializer_range", [0.02, 0.05])
def test_the_first_loss_is_what_fresh_weights_give(hidden_size: int, initializer_range: float) -> None:
    torch.manual_seed(0)
    shape = config(hidden_size=hidden_size, initializer_range=initializer_range)
    ids = torch.randint(0, 1000, (4, 128))
    with torch.no_grad():
        loss = LlamaForCausalLM(shape)(ids, labels=ids).loss.item()
    assert loss == pytest.approx(expected_first_loss(shape), abs=0.1)
    check_first_loss(loss, shape)
    for wrong in (loss - 1, loss + 1, math.nan):
        with pytest.raises(UserError, match=r"the loss of step 1 is .* fresh weights give"):
            check_first_loss(wrong, shape)
    check_first_loss(30.0, config(tie_word_embeddings=True))  # not known there
