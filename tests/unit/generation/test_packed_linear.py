"""Packed layers compute what they replace."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.generation.decoder import LlamaDecoder
from pretraining.generation.packed_linear import MIN_FP32_SIZE, PackedLinear, pack_linear_layers
from pretraining.system.host import bf16_instruction
from tests.rounding import BF16_ROUNDOFF, assert_same_sums, path_length, sum_rounding

HAS_BF16_FORM = torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_are_those_of_the_layer_by_any_number_of_vectors(dtype: torch.dtype, bias: bool) -> None:
    if dtype == torch.bfloat16 and not HAS_BF16_FORM:
        pytest.skip("oneDNN has no form for a weight in bf16 on this processor")
    torch.manual_seed(0)
    linear = nn.Linear(200, 3001, bias=bias, dtype=dtype)
    packed = PackedLinear(linear)
    inputs = torch.randn(2, 16, 200, dtype=dtype)
    with torch.no_grad():
        outputs = linear(inputs)
        # Sums of 200 terms in fp32. In bf16 the result is rounded, and once more with the bias, each by either layer.
        bounds = {"rtol": 4 * BF16_ROUNDOFF if dtype == torch.bfloat16 else 0.0}
        bounds["atol"] = sum_rounding(200) * outputs.abs().max().item()
        torch.testing.assert_close(packed(inputs), outputs, **bounds)
        for count in (1, 2, 7, 16):
            torch.testing.assert_close(packed(inputs[0, :count]), outputs[0, :count], **bounds)


@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_model_writes_what_it_wrote(tied: bool) -> None:
    """In fp32 its large weights alone are packed, and no head that is also the embedding: nothing is there twice."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=MIN_FP32_SIZE // 64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=MIN_FP32_SIZE // 64,
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    ids = torch.randint(0, 300, (3, 20))
    expected, num_parameters = model(ids).logits, model.num_parameters()
    pack_linear_layers(model)
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 2 * 3 + (not tied)
    assert model.num_parameters() == num_parameters
    num_terms = path_length(config, 20)
    assert_same_sums(model(ids).logits, expected, num_terms)
    logits = LlamaDecoder(model, num_rows=3, num_positions=20).prefill(ids.tolist(), first_row=0)
    assert_same_sums(logits, expected[:, -1], num_terms)


def test_a_model_in_bf16_is_packed_whole() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=99
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
    expected = model(torch.tensor([[1, 2, 3]])).logits
    pack_linear_layers(model)
    is_packed = HAS_BF16_FORM and bf16_instruction() is not None
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == (2 * 7 + 1) * is_packed
    # Between a token and its logit 13 tensors of each layer and 3 beside them are rounded to bf16. Where sums differ in
    # their last bits, each may fall to the other side.
    num_tensors = 2 * 13 + 3
    largest = num_tensors * BF16_ROUNDOFF * expected.abs().max().item()
    torch.testing.assert_close(model(torch.tensor([[1, 2, 3]])).logits, expected, atol=largest, rtol=0)
