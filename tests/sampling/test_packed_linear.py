"""Packed layers compute what they replace."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.sampling.decoder import LlamaDecoder
from pretraining.sampling.packed_linear import LEAST_FP32_SIZE, PackedLinear, pack_linear_layers
from pretraining.system.processor import bf16_instruction


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_are_those_of_the_layer_by_any_number_of_vectors(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(200, 3001, bias=bias, dtype=dtype)
    packed = PackedLinear(linear)
    inputs = torch.randn(2, 16, 200, dtype=dtype)
    with torch.no_grad():
        outputs = linear(inputs)
        torch.testing.assert_close(packed(inputs), outputs)
        for count in (1, 2, 7, 16):
            torch.testing.assert_close(packed(inputs[0, :count]), outputs[0, :count])


@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_model_writes_what_it_wrote(tied: bool) -> None:
    """In fp32 its large weights alone are packed, and no head that is also the embedding: nothing is there twice."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=LEAST_FP32_SIZE // 64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=LEAST_FP32_SIZE // 64,
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    ids = torch.randint(0, 300, (3, 20))
    expected, num_parameters = model(ids).logits, model.num_parameters()
    pack_linear_layers(model)
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 2 * 3 + (not tied)
    assert model.num_parameters() == num_parameters
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
    logits = LlamaDecoder(model, num_rows=3, num_positions=20).read_prompts(ids.tolist(), first_row=0)
    torch.testing.assert_close(logits, expected[:, -1], atol=1e-4, rtol=1e-4)


def test_a_model_in_bf16_is_packed_whole() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=99
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
    expected = model(torch.tensor([[1, 2, 3]])).logits
    pack_linear_layers(model)
    is_packed = bf16_instruction() is not None
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == (2 * 7 + 1) * is_packed
    torch.testing.assert_close(model(torch.tensor([[1, 2, 3]])).logits, expected, atol=2e-2, rtol=2e-2)
