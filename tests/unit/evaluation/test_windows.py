"""Texts of many lengths: padded for a GPU they have few shapes, and the same sums."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.evaluation.windows import TextWindow, evaluate_texts
from tests.conftest import AttentionShapes
from tests.rounding import FP32_ROUNDOFF, path_length

WINDOW_TOKENS, BATCH_TOKENS = 100, 256


@pytest.mark.guarantee("On a GPU, documents of any lengths are evaluated in few shapes, with the same result.")
def test_padded_for_a_gpu_few_shapes_occur_and_the_sums_stay(attention_shapes: AttentionShapes) -> None:
    """25 shapes without padding; a whole window is not a multiple, so it is one more shape."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**shape, vocab_size=300, max_position_embeddings=WINDOW_TOKENS)).eval()
    ids = np.random.default_rng(0).integers(0, 300, 250)
    lengths = [*range(2, WINDOW_TOKENS + 1), 250]  # the last in windows
    texts = [TextWindow("ab"[length % 2], ids[:length], np.ones(length, np.int64)) for length in lengths]

    def sums(multiple: int) -> dict[str, np.ndarray]:
        attention_shapes.clear()
        sizes = {"window_tokens": WINDOW_TOKENS, "batch_tokens": BATCH_TOKENS}
        return evaluate_texts(model, texts, **sizes, multiple=multiple)

    plain = sums(1)
    assert len(set(attention_shapes)) > 20
    padded = sums(32)
    found = {(query[0], query[2]) for query, _ in attention_shapes}
    assert found == {(8, 32), (4, 64), (2, 96), (2, 100)}
    assert {query[2:] for query, _ in attention_shapes} == {key[2:] for _, key in attention_shapes}
    assert padded.keys() == plain.keys() == {"a", "b"}
    rounding = 2 * path_length(model.config, WINDOW_TOKENS) * FP32_ROUNDOFF
    for source, values in padded.items():
        np.testing.assert_allclose(values[0], plain[source][0], rtol=rounding)
        assert values[1:].tolist() == plain[source][1:].tolist(), "correct predictions, predictions and bytes"
