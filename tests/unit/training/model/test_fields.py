"""The fields of a Llama's config, which are known without importing transformers, are those of its class."""

from transformers import LlamaConfig

from pretraining.training.model.fields import DEFAULTS, NOT_OVERRIDABLE, Heads, heads_of, max_positions


def test_fields_and_defaults_are_those_of_the_class() -> None:
    assert DEFAULTS.keys() == LlamaConfig.__annotations__.keys()
    assert DEFAULTS.keys() > NOT_OVERRIDABLE
    config = LlamaConfig()
    constants = {name: value for name, value in DEFAULTS.items() if value is not None}
    assert constants == {name: getattr(config, name) for name in constants}
    assert heads_of({}) == Heads(config.num_attention_heads, config.num_key_value_heads)
    assert heads_of({"num_attention_heads": 6, "num_key_value_heads": 2}) == Heads(6, 2)
    assert max_positions({"max_position_embeddings": None}) == config.max_position_embeddings
