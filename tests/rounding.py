"""How far two computations of the same may differ: by the order of their sums, and by nothing of the machine.

With the unit roundoff u (2^-24 in fp32), a sum of n terms is off by at most (n - 1) u times the sum of their sizes, in
whatever order it is added up (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 4.2). Where terms of
both signs cancel partial sums do, too: of n independent ones they grow with the square root, and the sum is off by
2/3 n u of its own size. Vector width, threads, blocks of a product, tiles and processes change the order alone, so two
computations differ by at most twice what each is off. Sums one after another, as through a model, add their lengths.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig

from tests.conftest import TINY_MODEL

FP32_ROUNDOFF, BF16_ROUNDOFF = 2.0**-24, 2.0**-8
# Of means over a thousand tokens and more, and of their exponentials. Errors of tokens have either sign: each is the
# square root of a path of a thousand terms, the mean a thirtieth of it, 6e-8, and exp of a mean of 9 nine times that.
MEAN_ROUNDING = 1e-6
TINY = LlamaConfig(**{name: int(value) for name, value in (field.split("=") for field in TINY_MODEL)})


def sum_rounding(num_terms: int) -> float:
    """How far two sums of as many terms differ, as a share of the result: 1.2e-4 for a thousand."""
    return 2 * num_terms * FP32_ROUNDOFF


def assert_same_sums(ours: torch.Tensor, theirs: torch.Tensor, num_terms: int) -> None:
    """Equal in fp32, but for the order of sums as long as this, in the size of the largest result."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=sum_rounding(num_terms) * theirs.abs().max().item())


def path_length(shape: LlamaConfig, num_positions: int) -> int:
    """Terms that are added up one after another from a token to its logit: 784 for TINY and 64 positions."""
    hidden, heads = shape.hidden_size, shape.num_attention_heads * shape.head_dim
    attention = 2 * hidden + shape.head_dim + 2 * num_positions + heads  # norm and queries, scores, softmax, values
    mlp = 2 * hidden + shape.intermediate_size  # norm and gate, down
    return shape.num_hidden_layers * (attention + mlp) + 2 * hidden  # norm and head


def loss_rounding(block_length: int = 64) -> float:
    """Largest relative difference of two losses of TINY: 9.3e-5 in blocks of 64.

    Losses of tokens are summed in fp64, and no logit is larger than the loss, so the path to a logit is all.
    """
    return sum_rounding(path_length(TINY, block_length))


def norm_rounding(block_length: int = 64, *, step_tokens: int = 512) -> float:
    """Largest relative difference of two gradient norms of TINY: 2.3e-4 in steps of 512 tokens.

    Backward goes the path once more, and adds up the gradients of a step's tokens, which are of either sign.
    """
    return sum_rounding(2 * path_length(TINY, block_length) + 2 * step_tokens // 3)


def assert_same_training(
    ours: Sequence[Any], theirs: Sequence[Any], *, block_length: int = 64, step_tokens: int = 512
) -> None:
    """Losses and gradient norms of each step are equal, but for the order of sums.

    The bounds are those of a step from equal weights. After it AdamW goes by the signs of gradients at first, and one
    below its own rounding may turn: statistical, sqrt(1,909) u = 2.6e-6 of them, one or two of the 540,000 weights a
    step, which go 2 * 0.01 apart, as far as another draw. Ten steps are 15 weights: 3e-5 of the sum that a norm is, and
    little of a loss, whose gradient by them is what is so small.
    """
    losses, norms = (np.array(ours) / np.array(theirs)).T
    np.testing.assert_allclose(losses, 1, rtol=loss_rounding(block_length))
    np.testing.assert_allclose(norms, 1, rtol=norm_rounding(block_length, step_tokens=step_tokens))


# Of losses and gradient norms over 20 steps at a learning rate of 1e-3. The forward and backward of a micro step are
# the same operations in each ZeRO stage; what differs is the order in which the gradients of at most 4 micro steps and
# 2 processes are added, 8 terms of either sign: 2 * 8 u = 1e-6 of a norm in fp32. AdamW turns the sign of a gradient
# below that, sqrt(8) u = 1.7e-7 of 290,000 weights, one in 20 steps, which is 1e-6 of a norm. In bf16 each term is
# rounded by u at most, and so is a norm, by one stage before the sum and by another after it: 2 u. A loss moves with
# the weights alone, whose gradient goes into the step by its direction: 1e-3 is 20 steps of 1e-3 in 290,000 weights,
# two in a hundred of which turn (statistical).
STAGE_ROUNDING = {"fp32": (1e-5, 1e-5), "bf16": (1e-3, 2 * BF16_ROUNDOFF)}


def assert_same_stages(ours: Sequence[Any], theirs: Sequence[Any], precision: str) -> None:
    """Losses and gradient norms of each step are equal in two ZeRO stages, but for the order of sums."""
    of_losses, of_norms = STAGE_ROUNDING[precision]
    losses, norms = (np.array(ours) / np.array(theirs)).T
    np.testing.assert_allclose(losses, 1, rtol=of_losses)
    np.testing.assert_allclose(norms, 1, rtol=of_norms)
