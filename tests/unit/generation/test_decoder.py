"""The decoder's logits are those of transformers' own forward; padded for a GPU it has few shapes, and its tokens."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.generation.batching import ActiveSequence, Request, generate_batched
from pretraining.generation.decoder import LlamaDecoder
from tests.conftest import AttentionShapes
from tests.rounding import assert_same_sums, path_length

SHAPES = {
    "plain": {},
    "shared keys, biases": {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "one key, tied, Llama 3": {
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "wide heads": {"head_dim": 48},
}
LENGTHS = (5, 17, 30)


def small_model(**fields: object) -> LlamaForCausalLM:
    """Weights large enough that every part of the model matters to the logits."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(**{**shape, "vocab_size": 300, "max_position_embeddings": 64, **fields})
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES.keys())
def test_logits_are_those_of_the_models_forward(fields: dict, multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretraining.generation.decoder.MAX_PREFILL_TOKENS", 60)  # two prompts, then the third
    model = small_model(**fields)
    ids = torch.randint(0, 300, (3, 50))
    with torch.no_grad():
        expected = model(ids).logits
    decoder = LlamaDecoder(model, num_rows=4, num_positions=50, multiple=multiple)
    logits = decoder.prefill([ids[row, :length].tolist() for row, length in enumerate(LENGTHS)], first_row=0)
    for step in range(20):
        for row, length in enumerate(LENGTHS):
            assert_same_sums(logits[row], expected[row, length + step - 1], path_length(model.config, 50))
        positions = [length + step for length in LENGTHS]
        logits = decoder.next_logits([ids[row, place].item() for row, place in enumerate(positions)], positions)


@pytest.mark.parametrize("multiple", [1, 16])
def test_a_row_that_moved_continues_unchanged(multiple: int) -> None:
    model = small_model()
    ids = torch.randint(0, 300, (2, 20))
    with torch.no_grad():
        expected = model(ids).logits
    decoder = LlamaDecoder(model, num_rows=2, num_positions=20, multiple=multiple)
    decoder.prefill([ids[0, :15].tolist(), ids[1, :10].tolist()], first_row=0)
    decoder.copy_row(1, 0, num_positions=10)
    logits = decoder.next_logits([ids[1, 10].item()], [10])
    assert_same_sums(logits[0], expected[1, 10], path_length(model.config, 20))
    logits = decoder.prefill([ids[0, :12].tolist()], first_row=1)  # over what another text left
    logits = decoder.next_logits([ids[1, 11].item(), ids[0, 12].item()], [11, 12])
    assert_same_sums(logits, torch.stack((expected[1, 11], expected[0, 12])), path_length(model.config, 20))


@pytest.mark.parametrize("flags", [{"greedy": True}, {"repetition_penalty": 1.0}], ids=["greedy", "sampled"])
@pytest.mark.guarantee("On a GPU, generation computes attention in few shapes, and the tokens do not change.")
def test_padded_for_a_gpu_few_shapes_occur_and_the_tokens_stay(flags: dict, attention_shapes: AttentionShapes) -> None:
    """Without padding each token is a shape, for each of which cuDNN would build a plan and a graph be captured."""
    model = small_model(max_position_embeddings=128, num_key_value_heads=2)
    lengths = (3, 40, 17, 9, 33, 1, 24)
    requests = [Request("", torch.randint(0, 300, (n,)).tolist(), number, 0) for number, n in enumerate(lengths)]

    def finish_reason(sequence: ActiveSequence) -> str:
        return "eos" if sequence.ids[-1] < 3 else "length" if len(sequence.ids) == 64 else ""

    def generated(multiple: int) -> dict[tuple[int, int], list[int]]:
        attention_shapes.clear()
        decoder = LlamaDecoder(model, num_rows=3, num_positions=104, multiple=multiple)
        arguments = GenerateArguments(max_new_tokens=64, **flags)
        return {one.request.key: one.ids for one in generate_batched(decoder, requests, finish_reason, arguments)}

    plain = generated(1)
    assert len(set(attention_shapes)) > 64
    padded = generated(32)
    assert padded == plain
    decode = {(queries, keys) for queries, keys in attention_shapes if queries[2:] != keys[2:] and queries[2] == 2}
    prefill = set(attention_shapes) - decode
    assert {keys[2] for _, keys in decode} <= {32, 64, 96, 128}
    assert {queries[0] for queries, _ in decode} == {3}, "always all rows"
    assert len(decode) <= 4
    assert {queries[2] for queries, _ in prefill} <= {32, 64}
    assert len(prefill) <= 6, "prompts of three rows at most, in two widths"
