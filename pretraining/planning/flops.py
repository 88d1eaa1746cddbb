"""Parameters of a Llama, and FLOPs per token of training."""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

NamedShape = tuple[str, tuple[int, ...]]


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


def parameter_shapes(shape: LlamaShape) -> Iterator[NamedShape]:
    """Yield name and shape of each parameter, in the order of the model; tied embeddings once."""
    embedding = (shape.vocab_size, shape.hidden_size)
    layer = tuple(_layer_shapes(shape))  # once: reading a field of a transformers config takes 10 us
    yield from _parameter_shapes(embedding, layer, shape.num_hidden_layers, has_head=not shape.tie_word_embeddings)


@lru_cache(maxsize=8)  # --deepspeed auto asks for them a thousand times
def _parameter_shapes(
    embedding: tuple[int, int], layer: tuple[NamedShape, ...], num_layers: int, *, has_head: bool
) -> tuple[NamedShape, ...]:
    of_layers = ((f"model.layers.{number}.{name}", size) for number in range(num_layers) for name, size in layer)
    head = (("lm_head.weight", embedding),) if has_head else ()
    return ("model.embed_tokens.weight", embedding), *of_layers, ("model.norm.weight", embedding[1:]), *head


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
