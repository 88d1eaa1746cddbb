"""A model that has one tensor in memory computes what the whole one does."""

import copy
import gc
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from pretraining.cli.arguments.pretrain import ParentModel
from pretraining.training.model.reference import (
    ROPE_BASES,
    better_base,
    config_by_transformers,
    needed_bytes,
    parent_losses,
    with_other_bases,
)
from pretraining.training.model.weights import ParentWeights

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
NUM_TOKENS = 96


@pytest.mark.parametrize("is_tied", [False, True])
@torch.no_grad()
def test_the_losses_are_those_of_transformers_for_each_rotary_base(tmp_path: Path, is_tied: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500, attention_bias=True, tie_word_embeddings=is_tied, initializer_range=0.2, **SHAPE
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    ids = torch.randint(0, 500, (NUM_TOKENS,))
    weights = ParentWeights(ParentModel(str(tmp_path), "--weights m", "m", "m", None), config, grows=False)
    read: list[int] = []
    original = weights.read
    weights.read = lambda name: read.append(num_alive()) or original(name)  # type: ignore
    own = config_by_transformers(tmp_path, 500)
    configs = [own, *with_other_bases(own)]
    assert [one.rope_parameters["rope_theta"] for one in configs] == list(ROPE_BASES)
    blocks = [ids, ids.flip(0)]
    items = [{"input_ids": block, "labels": block} for block in blocks]
    found = parent_losses(weights, items, configs, dtype=torch.float32, device=torch.device("cpu"))
    for of_config, one in zip(found, configs, strict=True):
        model = LlamaForCausalLM.from_pretrained(tmp_path, config=copy.deepcopy(one))
        for losses, block in zip(of_config, blocks, strict=True):
            expected = cross_entropy(model(block[None]).logits[0, :-1], block[1:], reduction="none")
            torch.testing.assert_close(losses, expected)
    assert not torch.allclose(found[0][0], found[1][0])
    assert len(read) == sum(1 for _ in LlamaForCausalLM(config).parameters()) + is_tied
    assert max(read) > read[0], "counted"
    assert max(read) < read[0] + sum(1 for _ in LlamaDecoderLayer(config, 0).parameters()), "more than a layer"


@pytest.mark.parametrize("written", [1e4, 5e5])
@torch.no_grad()
def test_a_config_with_another_rotary_base_than_the_model_is_found(tmp_path: Path, written: float) -> None:
    """Of text that the model has written itself, with base 10,000, the right base has the lowest loss."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.2, use_cache=False, **SHAPE))
    ids = torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(NUM_TOKENS):
        ids = torch.cat([ids, torch.multinomial(model(ids).logits[:, -1].softmax(dim=-1), 1)], dim=1)
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": written}
    model.save_pretrained(tmp_path)
    own = config_by_transformers(tmp_path, 50)
    configs = [own, *with_other_bases(own)]
    weights = ParentWeights(ParentModel(str(tmp_path), "--weights m", "m", "m", None), own, grows=False)
    item = {"input_ids": ids[0], "labels": ids[0]}
    found = parent_losses(weights, [item], configs, dtype=torch.float32, device=torch.device("cpu"))
    best = min(range(len(configs)), key=lambda index: found[index][0].mean().item())
    assert configs[best].rope_parameters["rope_theta"] == 1e4
    assert better_base(found[0], found[best], entropy=math.log(50)) == (written != 1e4)


def test_another_rotary_base_needs_a_clear_gain() -> None:
    """In units of the standard error, by tokens and by blocks, and only of a model that knows the text."""
    generator = torch.Generator().manual_seed(0)
    own = [torch.randn(256, generator=generator) + 4 for _ in range(8)]
    better = [losses - 0.1 + 0.1 * torch.randn(256, generator=generator) for losses in own]
    assert better_base(own, better, entropy=6.0)
    assert better_base(own[:1], better[:1], entropy=6.0)
    assert not better_base(own, better, entropy=3.0), "it does not know the text"
    assert not better_base(own, [losses - 0.02 for losses in own], entropy=6.0)
    noisy = [losses - 0.1 + 3 * torch.randn(256, generator=generator) for losses in own]
    assert not better_base(own, noisy, entropy=6.0), "by chance"
    one_block = [own[0] - 0.8, *own[1:]]
    assert torch.cat(own).mean() - torch.cat(one_block).mean() > 0.09
    assert not better_base(own, one_block, entropy=6.0), "one block alone"


def test_the_memory_that_is_asked_for_has_the_largest_layer_and_the_logits() -> None:
    config = LlamaConfig(vocab_size=500, **SHAPE)
    sizes = [sum(weight.numel() for weight in LlamaDecoderLayer(config, 0).parameters() if weight.ndim == 2)]
    sizes += [500 * 64]
    assert needed_bytes(config, num_tokens=0, dtype=torch.bfloat16) == 2 * sum(sizes)
    with_tokens = needed_bytes(config, num_tokens=96, dtype=torch.bfloat16)
    assert with_tokens == 2 * sum(sizes) + (4 * 96 * 96 + 500 * 96) * 10


def num_alive() -> int:
    """The parameters that are in memory."""
    return sum(1 for item in gc.get_objects() if type(item) is torch.nn.Parameter and item.device.type != "meta")
