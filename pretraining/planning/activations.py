"""Bytes that forward keeps for backward, and what both need besides, of one micro step on one GPU.

Tensor by tensor as the layers of transformers 5.23 compute a Llama with torch's autograd; a test holds it to what
autograd really saves and to the most that is alive in a real step. `tokens` below are those of a micro step on one GPU.
"""

from dataclasses import dataclass

from pretraining.planning.layout import TrainingLayout

FP32_BYTES = 4
# At the loss, for each logit in fp32: the log probability that forward keeps, its gradient, and that of the logit.
LOSS_BYTES = 12


@dataclass(frozen=True)
class Activations:
    """What is kept over the whole backward, and the most that is alive besides: at the loss, and in a layer."""

    kept: int
    at_loss: int
    in_layer: int


def activations(layout: TrainingLayout) -> Activations:
    """Of one micro step."""
    shape, tokens = layout.shape, layout.num_tokens
    num_layers, hidden = shape.num_hidden_layers, tokens * shape.hidden_size * layout.weight_bytes
    layer = layer_bytes(layout)
    every = layout.checkpoint_every
    num_checkpointed = 0 if every is None else len(range(0, num_layers, every))
    inputs = 0 if layout.offload_checkpoints else num_checkpointed * hidden
    last_norm = _norm_bytes(layout)
    if layout.loss_tiles:
        last_norm -= hidden  # a tiled loss does not keep what it was given
    around = last_norm + _position_bytes(layout)
    kept = (num_layers - num_checkpointed) * layer + inputs + around
    # The last layer comes first in backward. If it is not computed again, one that is finds what it kept free.
    again = layer if every is not None and (num_layers - 1) % every == 0 else 0
    in_layer = max(_mlp_moment(layout), _attention_moment(layout)) + again - last_norm  # which is free by then
    return Activations(kept, at_loss=loss_bytes(layout), in_layer=max(0, in_layer))


def _mlp_moment(layout: TrainingLayout) -> int:
    """Gradients of the MLP's product and of one of its factors, and of the layer's output."""
    hidden = layout.num_tokens * layout.shape.hidden_size * layout.weight_bytes
    return 2 * mlp_width_bytes(layout) + hidden + (_tiled_mlp_bytes(layout) if layout.mlp_tiles else 0)


def _attention_moment(layout: TrainingLayout) -> int:
    """Of eager attention the gradients of probabilities and scores in fp32; what the MLP kept is free by then."""
    if layout.attention != "eager":
        return 0
    # Values were weighed by another copy of the probabilities, in the precision of the weights.
    freed = layout.weight_bytes if layout.weight_bytes != FP32_BYTES else 0
    probabilities = layout.num_tokens * layout.block_length * layout.shape.num_attention_heads
    return probabilities * (2 * FP32_BYTES - freed) - _mlp_bytes(layout) - _norm_bytes(layout)


def layer_bytes(layout: TrainingLayout) -> int:
    """What one layer keeps that is not checkpointed."""
    shape, tokens, each = layout.shape, layout.num_tokens, layout.weight_bytes
    queries = tokens * shape.num_attention_heads * shape.head_dim * each
    keys = tokens * shape.num_key_value_heads * shape.head_dim * each
    if layout.compiles_layers:
        return _compiled_layer_bytes(layout, queries=queries, keys=keys)
    if layout.attention == "eager":  # keys and values once for each head, and every probability, in fp32 too
        probabilities = tokens * layout.block_length * shape.num_attention_heads
        attention = 3 * queries + probabilities * (FP32_BYTES + (each if each != FP32_BYTES else 0))
    else:  # and the logarithm of a sum for each head
        attention = queries + 2 * keys + tokens * shape.num_attention_heads * FP32_BYTES
    return 2 * _norm_bytes(layout) + attention + queries + _mlp_bytes(layout)


def _mlp_bytes(layout: TrainingLayout) -> int:
    """What an MLP keeps: gate, its SiLU, up, their product."""
    return 0 if layout.mlp_tiles else 4 * mlp_width_bytes(layout)


def _compiled_layer_bytes(layout: TrainingLayout, *, queries: int, keys: int) -> int:
    """What torch.compile's partitioner keeps (torch 2.13): what matrices were multiplied with, and what came of it.

    Norms, SiLU and rotary positions are computed again, fused into what needs them; so RMSNorm keeps a factor a token.
    In fp8 what is multiplied is a cast. Of its tensor the largest number is kept and the rest is computed again, so
    neither the norms' results are kept, nor the MLP's product, nor any cast of a weight. Measured on a CPU, where the
    products are emulated; those of a GPU (torch._scaled_mm), traced on meta tensors, keep the same.
    """
    shape, tokens = layout.shape, layout.num_tokens
    hidden = tokens * shape.hidden_size * layout.weight_bytes
    factors = FP32_BYTES * tokens * (2 + shape.num_attention_heads)
    # The layer's input and the sum between its halves, and the norms' results; gate, up, and their product.
    num_hidden, num_mlp = (2, 2) if layout.computes_in_fp8 else (4, 3)
    return num_hidden * hidden + 2 * queries + 2 * keys + num_mlp * mlp_width_bytes(layout) + factors


def _tiled_mlp_bytes(layout: TrainingLayout) -> int:
    """What a tile computes again, and gradients: of what the MLP is given, and of its weights, a tile's and the sum."""
    shape, each = layout.shape, layout.weight_bytes
    weights = 3 * shape.hidden_size * shape.intermediate_size
    return 4 * mlp_width_bytes(layout) + layout.num_tokens * shape.hidden_size * each + weights * (FP32_BYTES + each)


def mlp_width_bytes(layout: TrainingLayout) -> int:
    """One tensor as wide as the MLP, of the tokens that it takes at a time."""
    whole = layout.num_tokens * layout.shape.intermediate_size * layout.weight_bytes
    return -(-whole // (layout.mlp_tiles or 1))


def loss_bytes(layout: TrainingLayout) -> int:
    """The most that logits, losses and their gradients take."""
    shape, tokens, each = layout.shape, layout.num_tokens, layout.weight_bytes
    if layout.loss_tiles is None:
        return LOSS_BYTES * tokens * shape.vocab_size
    tile = -(-tokens // layout.loss_tiles) * shape.vocab_size
    weight = shape.vocab_size * shape.hidden_size
    # A tile's logits, which become their gradient, in two types; the gradients of the hidden states; and that of the
    # weight, summed up, and of a tile as it comes and cast to be added.
    other = each if each != FP32_BYTES else 0
    return tile * (FP32_BYTES + other) + tokens * shape.hidden_size * each + weight * (2 * FP32_BYTES + other)


def evaluation_bytes(layout: TrainingLayout) -> int:
    """The most that logits take without gradients: as they are, in fp32, and without tiles their log probabilities."""
    tokens = layout.evaluation_blocks * layout.block_length // layout.sequence_parallel_size
    in_tile = -(-tokens // (layout.loss_tiles or 1))
    return in_tile * layout.shape.vocab_size * (layout.weight_bytes + FP32_BYTES * (1 if layout.loss_tiles else 2))


def _norm_bytes(layout: TrainingLayout) -> int:
    """RMSNorm keeps its input in fp32 and a factor for each token, and its result before and after the weight.

    In tiles it keeps its input as it came, and its result is there, too.
    """
    if layout.mlp_tiles:
        return layout.num_tokens * layout.shape.hidden_size * 2 * layout.weight_bytes
    return layout.num_tokens * (layout.shape.hidden_size * (FP32_BYTES + 2 * layout.weight_bytes) + FP32_BYTES)


def _position_bytes(layout: TrainingLayout) -> int:
    """Ids, and cosine and sine of each position; with isolated documents also who sees whom, as sdpa wants it."""
    isolated = layout.masks_documents and layout.sequence_parallel_size == 1
    rows = layout.micro_batch_blocks if layout.masks_documents or layout.sequence_parallel_size > 1 else 1
    positions = rows * layout.block_length // layout.sequence_parallel_size
    mask = layout.num_tokens * layout.block_length * (1 + layout.weight_bytes)
    return (
        8 * layout.num_tokens
        + 2 * positions * layout.shape.head_dim * layout.weight_bytes
        + (mask if isolated and not layout.attention.startswith("flash") else 0)
    )
