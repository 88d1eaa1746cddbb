"""Compute loss, MLP and norms in tiles of tokens, so that the widest tensors never exist for a whole block.

The logits of 131,072 tokens for a vocabulary of 128,256 take 67 GB in fp32, and so do their gradients; one of 32 tiles
takes 2.1 GB. Tiles follow ALST (arXiv 2506.13996); loss and gradient are computed together as in Liger-Kernel's fused
linear cross entropy (arXiv 2410.10989).

DeepSpeed's TiledFusedLogitsLoss and TiledMLP (runtime/sequence_parallel/ulysses_sp.py, 0.19.8) are not used: the first
ignores a later division of the loss in the gradient of `lm_head`, and both give weights no gradient where `torch.chunk`
returns fewer tiles than asked for.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.utils import ModelOutput

from pretraining.training.data.dataset import IGNORED_LABEL

TileResults = tuple[Tensor, Tensor, Tensor]


def tiled_token_losses(lm_head: nn.Module, hidden: Tensor, labels: Tensor, *, num_tiles: int) -> TileResults:
    """The sum of the token losses, the loss of each token, and whether no token was likelier than its label.

    `labels` [batch, length] are shifted already: the label of a position is the next token. At IGNORED_LABEL the loss
    is 0 and the prediction not correct. Losses are in nats and fp32, and only their sum has a gradient.

    All tiles are computed in one call of `lm_head`, whose hooks gather the weight under ZeRO-3.
    """
    ordinary_forward = lm_head.forward
    lm_head.forward = partial(_head_losses, lm_head, num_tiles=num_tiles)
    try:
        return lm_head(hidden, labels)
    finally:
        lm_head.forward = ordinary_forward


def _head_losses(lm_head: nn.Module, hidden: Tensor, labels: Tensor, *, num_tiles: int) -> TileResults:
    flat = (hidden.flatten(0, 1), lm_head.weight, labels.flatten())
    loss_sum, token_losses, is_correct = _TiledLosses.apply(*flat, num_tiles, torch.is_grad_enabled())
    return loss_sum, token_losses.view_as(labels), is_correct.view_as(labels)


class _TiledLosses(torch.autograd.Function):
    """Computes the gradient of a tile together with its loss, so that no logits are kept for backward.

    Kept are the gradients of `rows` [tokens, hidden] and `weight`, for an incoming gradient of 1.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, labels: Tensor, num_tiles: int, with_gradient: bool
    ) -> TileResults:
        losses = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        is_correct = torch.empty(len(rows), dtype=torch.bool, device=rows.device)
        row_gradient = torch.empty_like(rows if with_gradient else rows[:0])
        # Tiles are added in fp32, like micro steps: bf16 would round the sum once per tile.
        weight_gradient = torch.zeros_like(weight if with_gradient else weight[:0], dtype=torch.float32)
        tile_length = _tile_length(len(rows), num_tiles)
        for start in range(0, len(rows), tile_length):
            tile = slice(start, start + tile_length)
            logits = (rows[tile] @ weight.T).float()
            losses[tile], is_correct[tile] = _losses_and_gradient_inplace(logits, labels[tile])
            if with_gradient:
                gradient = logits.to(rows.dtype)
                row_gradient[tile] = gradient @ weight
                weight_gradient += gradient.T @ rows[tile]
        ctx.save_for_backward(row_gradient, weight_gradient)
        ctx.tile_length, ctx.weight_dtype = tile_length, weight.dtype
        ctx.mark_non_differentiable(losses, is_correct)
        return losses.sum(), losses, is_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        row_gradient, weight_gradient = ctx.saved_tensors
        for part in row_gradient.split(ctx.tile_length):
            # In fp32: 1 / number of tokens, rounded to bf16, would scale every gradient by up to 0.4 %.
            part.copy_(part.float() * incoming)
        return row_gradient, weight_gradient.mul_(incoming).to(ctx.weight_dtype), None, None, None


def _losses_and_gradient_inplace(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of a tile, and whether no token is likelier than the label; overwrites `logits` with the gradient.

    logsumexp would allocate two more tensors of this size, and on a CPU take longer than this whole function.
    """
    is_counted = (labels != IGNORED_LABEL)[:, None]
    indices = labels.clamp(min=0)[:, None]
    highest, label_logits = logits.amax(-1, keepdim=True), logits.gather(-1, indices)
    is_correct = is_counted & (label_logits >= highest)
    distances = highest - label_logits
    sums = logits.sub_(highest).exp_().sum(-1, keepdim=True)
    # Divided, as multiplying by 1 / sums would round twice; uncounted rows are divided by infinity.
    logits.div_(sums.masked_fill(~is_counted, math.inf)).scatter_add_(-1, indices, -is_counted.to(logits.dtype))
    return ((distances + sums.log()) * is_counted)[:, 0], is_correct[:, 0]


@dataclass
class TokenLossOutput(ModelOutput):
    """The output of a model with a tiled loss, given labels: losses and no logits."""

    loss: Tensor | None = None
    token_losses: Tensor | None = None
    is_correct: Tensor | None = None


def tile_loss(model: PreTrainedModel, *, num_tiles: int) -> None:
    """Have this model return a `TokenLossOutput` when given (shifted) labels; without labels it returns logits.

    This reindices the model's forward, because ZeRO-3 traces a step from the call of the whole model.
    """
    model.forward = partial(_forward_with_token_losses, model, num_tiles)


def _forward_with_token_losses(
    model: PreTrainedModel, num_tiles: int, *, labels: Tensor | None = None, **inputs: Any
) -> ModelOutput:
    if labels is None:
        return type(model).forward(model, **inputs)
    hidden = model.model(**inputs).last_hidden_state
    return TokenLossOutput(*tiled_token_losses(model.lm_head, hidden, labels, num_tiles=num_tiles))


@contextmanager
def without_tiling(model: PreTrainedModel) -> Iterator[None]:
    """Turn off all tiles within the context."""
    tiled = [module for module in model.modules() if isinstance(vars(module).get("forward"), partial)]
    forwards = [vars(module).pop("forward") for module in tiled]
    try:
        yield
    finally:
        for module, forward in zip(tiled, forwards, strict=True):
            module.forward = forward


def tile_layers(model: PreTrainedModel, *, num_tiles: int) -> None:
    """Have each MLP and norm of this model compute in tiles along the length, and keep only its input for backward."""
    for module in model.modules():
        if isinstance(module, (LlamaMLP, LlamaRMSNorm)):
            module.forward = partial(_in_tiles, module, num_tiles)


def _in_tiles(module: nn.Module, num_tiles: int, hidden: Tensor) -> Tensor:
    compute = partial(type(module).forward, module)
    return _TokenwiseTiles.apply(compute, num_tiles, hidden, *module.parameters())


class _TokenwiseTiles(torch.autograd.Function):
    """Applies `compute`, which has `weights`, to tiles of `hidden` [batch, length, width]; recomputes in backward.

    With torch's checkpoint per tile, autograd would add up the tiles' weight gradients in bf16. Norms are included
    because autograd keeps 8 bytes per bf16 number for them, of which 2 are the input.
    """

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[Tensor], Tensor], num_tiles: int, hidden: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.compute, ctx.weights, ctx.tile_length = compute, weights, _tile_length(hidden.shape[1], num_tiles)
        result = torch.empty_like(hidden)
        for part, target in _tiles(ctx.tile_length, hidden, result):
            target.copy_(compute(part))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        gradient = torch.empty_like(hidden)
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in ctx.weights]
        for part, target, incoming_part in _tiles(ctx.tile_length, hidden, gradient, incoming):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                result = ctx.compute(part)
            found, *of_weights = torch.autograd.grad(result, (part, *ctx.weights), incoming_part)
            target.copy_(found)
            for total, found in zip(sums, of_weights, strict=True):
                total += found
        of_weights = [total.to(weight.dtype) for total, weight in zip(sums, ctx.weights, strict=True)]
        return None, None, gradient, *of_weights


def _tiles(tile_length: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same tile of each tensor."""
    return zip(*(tensor.split(tile_length, dim=1) for tensor in tensors), strict=True)


def _tile_length(length: int, num_tiles: int) -> int:
    """The length of all tiles but the last, which may be shorter."""
    return -(-length // num_tiles)
