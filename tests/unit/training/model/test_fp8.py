"""What is computed in fp8 is just the products of the layers, in just this arithmetic, and only while training."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import linear
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.errors import UserError
from pretraining.training.model import fp8
from pretraining.training.model.fp8 import check_fp8, convert_to_fp8
from tests.unit.planning.layouts import Shape, layout_of

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None,
    reason="torchao is not installed (pip install -c requirements-extras.txt torchao)",
)
CONFIG = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=100,
    pad_token_id=None,
)


def through_fp8(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scaled so that the largest number is the largest of `dtype`, rounded to it, and back."""
    scale = (torch.finfo(dtype).max / tensor.abs().max().double()).float()
    return (tensor * scale).to(dtype).float() / scale


def converted() -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    torch.manual_seed(1)
    plain, model = LlamaForCausalLM(CONFIG), LlamaForCausalLM(CONFIG)
    model.load_state_dict(plain.state_dict())
    convert_to_fp8(model)
    return plain.train(), model.train()


@needs_torchao
def test_a_product_is_that_of_casts_scaled_by_the_largest_number_of_a_tensor() -> None:
    _, model = converted()
    for layer in model.model.layers:
        linears = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        assert len(linears) == 7
        for module in linears:
            rows = torch.randn(2, 16, module.in_features, requires_grad=True)
            gradient = torch.randn(2, 16, module.out_features)
            result = module(rows)
            result.backward(gradient)
            inputs, weight = (through_fp8(tensor.detach(), torch.float8_e4m3fn) for tensor in (rows, module.weight))
            incoming = through_fp8(gradient, torch.float8_e5m2)
            torch.testing.assert_close(result, linear(inputs, weight))
            torch.testing.assert_close(rows.grad, incoming @ weight)
            torch.testing.assert_close(module.weight.grad, incoming.flatten(0, 1).T @ inputs.flatten(0, 1))
            assert (result - linear(rows, module.weight)).abs().max() > 1e-4, "nothing was rounded"


@needs_torchao
def test_weights_stay_what_they_are_and_all_else_computes_as_before() -> None:
    model = LlamaForCausalLM(CONFIG)
    before = dict(model.named_parameters())
    convert_to_fp8(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert type(model.lm_head) is torch.nn.Linear
    rows = torch.randn(2, 16, 32)
    assert torch.equal(model.lm_head(rows), linear(rows, model.lm_head.weight))


@needs_torchao
def test_a_model_that_does_not_train_computes_as_it_would_without() -> None:
    plain, model = converted()
    ids = torch.randint(0, 100, (2, 16))
    assert not torch.equal(model(ids).logits, plain(ids).logits)
    assert torch.equal(model.eval()(ids).logits, plain.eval()(ids).logits)


@needs_torchao
def test_a_layer_with_checkpointing_has_the_same_gradients() -> None:
    _, model = converted()
    ids = torch.randint(0, 100, (2, 16))
    gradients = []
    for turn in ("plain", "checkpointed"):
        if turn == "checkpointed":
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


def test_what_has_no_fp8_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    odd = Shape(hidden_size=100, num_attention_heads=10, num_key_value_heads=5, head_dim=10)
    with pytest.raises(UserError) as refused:
        check_fp8(replace(layout_of("llama2_7b"), shape=odd, block_length=1001))
    assert [problem.split("; ")[0] for problem in refused.value.problems] == [
        "--fp8: needs multiples of 16, but hidden_size is 100",
        "--fp8: needs multiples of 16, but num_attention_heads * head_dim is 100",
        "--fp8: needs multiples of 16, but num_key_value_heads * head_dim is 50",
        "--fp8: needs micro steps of a multiple of 16 tokens, but one has 1,001",
        "--fp8: needs a GPU of compute capability 8.9 or newer (Ada, Hopper), this one has 8.0",
    ]


def test_a_hopper_gpu_computes_in_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    check_fp8(layout_of("llama2_7b"))
