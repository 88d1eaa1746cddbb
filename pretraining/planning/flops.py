"""Parameters of a Llama, and FLOPs per token of training."""

import math
from collections.abc import Iterator
from typing import Protocol


class LlamaShape(Protocol):
    """The fields of a LlamaConfig that decide the size of the model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool


def parameter_shapes(shape: LlamaShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each parameter, in the order of the model; tied embeddings once."""
    yield "model.embed_tokens.weight", (shape.vocab_size, shape.hidden_size)
    layer = list(_layer_shapes(shape))  # once: reading a field of a transformers config takes 10 us
    for number in range(shape.num_hidden_layers):
        for name, dimensions in layer:
            yield f"model.layers.{number}.{name}", dimensions
    yield "model.norm.weight", (shape.hidden_size,)
    if not shape.tie_word_embeddings:
        yield "lm_head.weight", (shape.vocab_size, shape.hidden_size)


def num_parameters(shape: LlamaShape) -> int:
    """Count the parameters of the model, tied embeddings once."""
    return sum(math.prod(dimensions) for _, dimensions in parameter_shapes(shape))


def layer_parameters(shape: LlamaShape) -> int:
    """Count the parameters of one layer."""
    return sum(math.prod(dimensions) for _, dimensions in _layer_shapes(shape))


def _layer_shapes(shape: LlamaShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, mlp = shape.hidden_size, shape.intermediate_size
    query, key_value = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    projections = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    for name, (outputs, inputs) in projections.items():
        yield f"{name}.weight", (outputs, inputs)
        if shape.attention_bias if name.startswith("self_attn") else shape.mlp_bias:
            yield f"{name}.bias", (outputs,)
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)


def flops_per_token(shape: LlamaShape, *, block_length: int, is_causal: bool = False) -> float:
    """FLOPs of forward and backward of one token: attention over the full square, without recomputation.

    6 N + 12 L d s as in PaLM (arXiv 2204.02311, appendix B), where N excludes the input embedding, which is looked
    up, and includes the output projection, tied or not. `is_causal` counts half of the square, 6 L d s: on average a
    token attends to half of its block.
    """
    embeddings = shape.vocab_size * shape.hidden_size
    multiplied = num_parameters(shape) - (0 if shape.tie_word_embeddings else embeddings)
    attention_width = shape.num_attention_heads * shape.head_dim
    square = 12.0 * shape.num_hidden_layers * attention_width * block_length
    return 6.0 * multiplied + (square / 2 if is_causal else square)
