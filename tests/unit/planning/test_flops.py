import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from pretraining.planning.flops import flops_per_token, num_parameters
from pretraining.training.model.fields import load_presets

PUBLISHED = {
    "llama1_7b": 6_738_415_616,
    "llama1_13b": 13_015_864_320,
    "llama1_30b": 32_528_943_616,
    "llama1_65b": 65_285_660_672,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "tinyllama_1b": 1_100_048_384,
}


def config_of(name: str, **fields: object) -> LlamaConfig:
    return LlamaConfig.from_dict({**load_presets()[name], **fields})


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.guarantee("Parameters of the presets are the published numbers.")
def test_presets_have_the_published_number_of_parameters(name: str) -> None:
    assert num_parameters(config_of(name)) == PUBLISHED[name]


def test_the_345m_preset_has_the_shape_of_its_name() -> None:
    config = config_of("llama_345m")
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (24, 1024, 16)
    assert num_parameters(config) == pytest.approx(345e6, rel=0.005)


@pytest.mark.parametrize("name", sorted(load_presets()))
def test_the_count_is_that_of_the_real_model(name: str) -> None:
    config = config_of(name, num_hidden_layers=2)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert num_parameters(config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("fields", [{"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}])
def test_tied_embeddings_and_biases_are_counted_as_they_are(fields: dict[str, bool]) -> None:
    config = config_of("quickstart", **fields)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert num_parameters(config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.guarantee("FLOPs are those that torch counts.")
def test_flops_are_those_that_torch_counts(tied: bool) -> None:
    config = config_of("quickstart", num_key_value_heads=2, tie_word_embeddings=tied)
    config._attn_implementation = "eager"  # multiplies the full square, which the formula counts
    model = LlamaForCausalLM(config)
    ids = torch.randint(0, 4096, (2, 128))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    # The counter leaves out norms and other elementwise work, the formula counts their weights as if multiplied.
    assert flops_per_token(config, block_length=128) == pytest.approx(counter.get_total_flops() / ids.numel(), rel=0.01)


def test_the_causal_count_leaves_out_half_of_the_square_of_attention() -> None:
    config = config_of("quickstart", num_key_value_heads=2)
    lengths = (128, 512)
    full, causal = (
        [flops_per_token(config, block_length=n, is_causal=half) for n in lengths] for half in (False, True)
    )
    square = [12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * n for n in lengths]
    assert [all_of_it - half for all_of_it, half in zip(full, causal, strict=True)] == [part / 2 for part in square]
    # What torch counts grows with the square alone: a token more costs the same, wherever the block ends.
    assert counted(config, 512) - counted(config, 128) == pytest.approx(square[1] - square[0], rel=1e-6)


def counted(config: LlamaConfig, block_length: int) -> float:
    """FLOPs of a token's forward and backward, as torch counts them with attention over the full square."""
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        ids = torch.zeros(1, block_length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids, labels=ids).loss.backward()
    return counter.get_total_flops() / block_length


def test_llama2_7b_at_4096_takes_46_gigaflops_a_token() -> None:
    assert flops_per_token(config_of("llama2_7b"), block_length=4096) == pytest.approx(46.09e9, rel=1e-3)
