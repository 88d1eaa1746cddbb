"""The next token of each row: filters, and a draw by a random number that is the row's own.

The numbers follow from seed, prompt and sample alone, so that a text does not depend on the rows beside it. What the
filters keep is what those of transformers keep, in the order of its `generate`
(tests/unit/generation/test_sampling.py).
"""

from collections.abc import Sequence

import numpy as np
import torch

from pretraining.cli.arguments.generate import GenerateArguments


def random_numbers(seed: int, prompt_number: int, sample_number: int, *, count: int) -> list[float]:
    """Numbers in [0, 1), one for each token of a continuation; more of them begin with the same ones."""
    return np.random.default_rng((seed, prompt_number, sample_number)).random(count).tolist()


def sample_tokens(logits: torch.Tensor, numbers: Sequence[float], arguments: GenerateArguments) -> torch.Tensor:
    """One token [rows] of each row's logits [rows, vocabulary], by its number in [0, 1).

    The tokens that are kept stand in the order of their ids, and the number falls into the part of one of them. By
    probability two of them would change places as soon as a sum is rounded differently, which it is in another batch.
    """
    if arguments.greedy:
        return logits.argmax(-1)
    count = min(arguments.top_k or logits.shape[-1], logits.shape[-1])
    values, tokens = logits.topk(count)
    shares = (values / arguments.temperature).softmax(-1)
    kept = shares >= arguments.min_p * shares[:, :1]
    kept &= shares.cumsum(-1) - shares < arguments.top_p
    tokens, order = tokens.sort(-1)
    ends = (shares * kept).gather(-1, order).double().cumsum(-1)
    whole = ends[:, -1:]
    targets = torch.tensor(numbers, dtype=torch.double, device=logits.device)[:, None] * whole
    targets = targets.minimum(whole.nextafter(torch.zeros_like(whole)))  # a number just below 1 is rounded up
    return tokens.gather(-1, (ends <= targets).sum(-1, keepdim=True))[:, 0]


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Natural log probability [rows] of each row's token under the model itself."""
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
