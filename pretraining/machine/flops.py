"""How many parameters a Llama has, and how much arithmetic one token of training takes."""

from typing import Protocol


class LlamaShape(Protocol):
    """The fields of a LlamaConfig that decide its size."""

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


def num_parameters(shape: LlamaShape) -> int:
    """Parameters of the model, each counted once (tied embeddings too)."""
    embeddings = shape.vocab_size * shape.hidden_size
    output = 0 if shape.tie_word_embeddings else embeddings
    return embeddings + shape.num_hidden_layers * _num_layer_parameters(shape) + shape.hidden_size + output


def _num_layer_parameters(shape: LlamaShape) -> int:
    query_width = shape.num_attention_heads * shape.head_dim
    key_value_width = shape.num_key_value_heads * shape.head_dim
    attention = shape.hidden_size * (2 * query_width + 2 * key_value_width)
    mlp = 3 * shape.hidden_size * shape.intermediate_size
    norms = 2 * shape.hidden_size
    attention_biases = shape.attention_bias * (query_width + 2 * key_value_width + shape.hidden_size)
    mlp_biases = shape.mlp_bias * (2 * shape.intermediate_size + shape.hidden_size)
    return attention + mlp + norms + attention_biases + mlp_biases


def flops_per_token(shape: LlamaShape, *, block_length: int, is_causal: bool = False) -> float:
    """FLOPs of one token's forward and backward, attention counted over the full square, recomputation not counted.

    6 N + 12 L d s as in PaLM (arXiv 2204.02311, appendix B), with N without the input embedding, which is looked up and
    not multiplied; the output projection multiplies and counts, tied or not. `is_causal` counts half of the square,
    6 L d s: what a token attends to is, in the mean, half of its block.
    """
    embeddings = shape.vocab_size * shape.hidden_size
    multiplied = num_parameters(shape) - (0 if shape.tie_word_embeddings else embeddings)
    attention_width = shape.num_attention_heads * shape.head_dim
    square = 12.0 * shape.num_hidden_layers * attention_width * block_length
    return 6.0 * multiplied + (square / 2 if is_causal else square)
