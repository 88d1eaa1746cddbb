"""Bytes of activations that one micro step keeps for backward on one GPU, and the peaks of forward and backward.

Counted tensor by tensor as the layers of transformers 5.23 compute a Llama with torch's autograd; a test compares this
with what autograd saves and with the peak of a real step. `tokens` below are those of a micro step on one GPU.
"""

from dataclasses import dataclass

from pretraining.planning.layout import FP32_BYTES, TrainingLayout

# At the loss, for each logit in fp32: the log probability kept by forward, its gradient, and the logit's gradient.
LOSS_BYTES = 12


@dataclass(frozen=True)
class Activations:
    """Bytes kept throughout backward, and the peaks on top of them: at the loss, and in the backward of a layer."""

    kept: int
    at_loss: int
    in_layer: int


def activations(layout: TrainingLayout) -> Activations:
    """Count the bytes of one micro step."""
    shape, tokens = layout.shape, layout.num_tokens
    num_layers, hidden = shape.num_hidden_layers, tokens * shape.hidden_size * layout.weight_bytes
    layer = layer_bytes(layout)
    every = layout.checkpoint_every
    num_checkpointed = 0 if every is None else len(range(0, num_layers, every))
    inputs = 0 if layout.offload_checkpoints else num_checkpointed * hidden
    last_norm = _norm_bytes(layout)
    if layout.loss_tiles:
        last_norm -= hidden  # a tiled loss does not keep its input
    kept = (num_layers - num_checkpointed) * layer + inputs + last_norm + _position_bytes(layout)
    # The last layer comes first in backward. Where it is not recomputed, its memory is free for one that is.
    recomputed = layer if every is not None and (num_layers - 1) % every == 0 else 0
    backward = max(_mlp_backward_bytes(layout), _attention_backward_bytes(layout))
    in_layer = backward + recomputed - last_norm  # which is free by then
    return Activations(kept, at_loss=loss_bytes(layout), in_layer=max(0, in_layer))


def _mlp_backward_bytes(layout: TrainingLayout) -> int:
    """Gradients of the MLP's product and of one of its factors, and of the layer's output."""
    hidden = layout.num_tokens * layout.shape.hidden_size * layout.weight_bytes
    return 2 * mlp_width_bytes(layout) + hidden + (_tiled_mlp_bytes(layout) if layout.mlp_tiles else 0)


def _attention_backward_bytes(layout: TrainingLayout) -> int:
    """Of eager attention: gradients of probabilities and scores in fp32; the MLP's memory is free by then."""
    if layout.attention != "eager":
        return 0
    # The values were multiplied by another copy of the probabilities, in the precision of the weights.
    freed = layout.weight_bytes if layout.weight_bytes != FP32_BYTES else 0
    probabilities = layout.num_tokens * layout.block_length * layout.shape.num_attention_heads
    return probabilities * (2 * FP32_BYTES - freed) - _mlp_bytes(layout) - _norm_bytes(layout)


def layer_bytes(layout: TrainingLayout) -> int:
    """Bytes that one layer without checkpointing keeps for backward."""
    shape, tokens, each = layout.shape, layout.num_tokens, layout.weight_bytes
    queries = tokens * shape.num_attention_heads * shape.head_dim * each
    keys = tokens * shape.num_key_value_heads * shape.head_dim * each
    if layout.compiles_layers:
        return _compiled_layer_bytes(layout, queries=queries, keys=keys)
    if layout.attention == "eager":  # keys and values once per head, and each probability, in fp32 too
        probabilities = tokens * layout.block_length * shape.num_attention_heads
        attention = 3 * queries + probabilities * (FP32_BYTES + (each if each != FP32_BYTES else 0))
    else:  # and the logarithm of a sum per head
        attention = queries + 2 * keys + tokens * shape.num_attention_heads * FP32_BYTES
    return 2 * _norm_bytes(layout) + attention + queries + _mlp_bytes(layout)


def _mlp_bytes(layout: TrainingLayout) -> int:
    """Bytes that an MLP keeps: gate, its SiLU, up, their product."""
    return 0 if layout.mlp_tiles else 4 * mlp_width_bytes(layout)


def _compiled_layer_bytes(layout: TrainingLayout, *, queries: int, keys: int) -> int:
    """Bytes that torch.compile's partitioner keeps (torch 2.13): inputs and outputs of matrix multiplications.

    Norms, SiLU and rotary positions are recomputed, fused into their consumers; so RMSNorm keeps one factor per token.
    In fp8 the inputs are casts. Only the maximum of a cast tensor is kept and the rest is recomputed, so neither the
    norms' results nor the MLP's product nor casts of weights are kept. Measured on a CPU, where fp8 is emulated; the
    GPU's kernels (torch._scaled_mm), traced on meta tensors, keep the same.
    """
    shape, tokens = layout.shape, layout.num_tokens
    hidden = tokens * shape.hidden_size * layout.weight_bytes
    factors = FP32_BYTES * tokens * (2 + shape.num_attention_heads)
    # The layer's input and the sum between its halves, and the norms' results; gate, up, and their product.
    num_hidden, num_mlp = (2, 2) if layout.computes_in_fp8 else (4, 3)
    return num_hidden * hidden + 2 * queries + 2 * keys + num_mlp * mlp_width_bytes(layout) + factors


def _tiled_mlp_bytes(layout: TrainingLayout) -> int:
    """Recomputation of a tile, and gradients of the MLP's input and of its weights, for one tile and summed."""
    shape, each = layout.shape, layout.weight_bytes
    weights = 3 * shape.hidden_size * shape.intermediate_size
    return 4 * mlp_width_bytes(layout) + layout.num_tokens * shape.hidden_size * each + weights * (FP32_BYTES + each)


def mlp_width_bytes(layout: TrainingLayout) -> int:
    """Bytes of one tensor as wide as the MLP, for the tokens of one tile."""
    total = layout.num_tokens * layout.shape.intermediate_size * layout.weight_bytes
    return -(-total // (layout.mlp_tiles or 1))


def loss_bytes(layout: TrainingLayout) -> int:
    """Peak bytes of logits, losses and their gradients."""
    shape, tokens, each = layout.shape, layout.num_tokens, layout.weight_bytes
    if layout.loss_tiles is None:
        return LOSS_BYTES * tokens * shape.vocab_size
    tile = -(-tokens // layout.loss_tiles) * shape.vocab_size
    weight = shape.vocab_size * shape.hidden_size
    # A tile's logits, which become their gradient, in two types; the gradients of the hidden states; and that of the
    # weight: the sum, and a tile's before and after it is cast to be added.
    other = each if each != FP32_BYTES else 0
    return tile * (FP32_BYTES + other) + tokens * shape.hidden_size * each + weight * (2 * FP32_BYTES + other)


def evaluation_bytes(layout: TrainingLayout) -> int:
    """Peak bytes of logits without gradients: in both precisions, and without tiles their log probabilities."""
    num_blocks = layout.evaluation_blocks or layout.micro_batch_blocks
    tokens = num_blocks * layout.block_length // layout.sequence_parallel_size
    in_tile = -(-tokens // (layout.loss_tiles or 1))
    return in_tile * layout.shape.vocab_size * (layout.weight_bytes + FP32_BYTES * (1 if layout.loss_tiles else 2))


def _norm_bytes(layout: TrainingLayout) -> int:
    """RMSNorm keeps its input in fp32, a factor per token, and its result before and after the weight.

    In tiles it keeps its input in the precision of the weights, and its result.
    """
    if layout.mlp_tiles:
        return layout.num_tokens * layout.shape.hidden_size * 2 * layout.weight_bytes
    return layout.num_tokens * (layout.shape.hidden_size * (FP32_BYTES + 2 * layout.weight_bytes) + FP32_BYTES)


def _position_bytes(layout: TrainingLayout) -> int:
    """Ids, cosine and sine of each position, and with document masking sdpa's mask."""
    masks = layout.masks_documents and layout.takes_mask
    rows = layout.micro_batch_blocks if layout.masks_documents or layout.sequence_parallel_size > 1 else 1
    positions = rows * layout.block_length // layout.sequence_parallel_size
    mask = layout.num_tokens * layout.block_length * (1 + layout.weight_bytes) if masks else 0
    return 8 * layout.num_tokens + 2 * positions * layout.shape.head_dim * layout.weight_bytes + mask
