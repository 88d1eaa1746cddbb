"""Choose the next token of each row: penalties, filters, and a draw by the row's own random number.

The numbers depend only on seed, prompt and sample, so a completion does not depend on the other rows of its batch.
Penalties and filters are those of transformers' `generate`, in its order (tests/unit/generation/test_sampling.py).
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.generation.decoder import LlamaDecoder


def random_numbers(seed: int, prompt_number: int, sample_number: int, *, count: int) -> list[float]:
    """Numbers in [0, 1), one per token of a completion; a larger `count` extends the same series."""
    return np.random.default_rng((seed, prompt_number, sample_number)).random(count).tolist()


def sample_tokens(logits: torch.Tensor, numbers: Sequence[float], arguments: GenerateArguments) -> torch.Tensor:
    """Tokens [rows] sampled from logits [rows, vocabulary], each by its row's number in [0, 1).

    The cumulative distribution is in the order of token ids. In the order of probabilities, two similar tokens would
    swap places when a sum is rounded differently, as it is in another batch.
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
    total = ends[:, -1:]
    targets = torch.tensor(numbers, dtype=torch.double, device=logits.device)[:, None] * total
    targets = targets.minimum(total.nextafter(torch.zeros_like(total)))  # a number just below 1 is rounded up
    return tokens.gather(-1, (ends <= targets).sum(-1, keepdim=True))[:, 0]


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Natural log probability [rows] of each row's token under the model itself."""
    return logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]


class Penalties:
    """--repetition_penalty and --no_repeat_ngram_size of rows of any lengths, prompts included."""

    def __init__(self, arguments: GenerateArguments, decoder: LlamaDecoder) -> None:
        self._penalty = arguments.repetition_penalty
        self._ngram_size = arguments.no_repeat_ngram_size
        num_penalized = decoder.num_rows if self._penalty != 1 else 0
        self._seen = torch.zeros((num_penalized, decoder.vocab_size), dtype=torch.bool, device=decoder.device)
        self._ngrams = [_Ngrams(self._ngram_size) for _ in range(decoder.num_rows if self._ngram_size else 0)]

    def reset(self, row: int, ids: Sequence[int]) -> None:
        """Start a row with these ids."""
        if len(self._seen):
            self._seen[row] = False
            self._seen[row, list(ids)] = True
        if self._ngrams:
            self._ngrams[row] = _Ngrams(self._ngram_size)
            for token in ids:
                self._ngrams[row].add(token)

    def add(self, tokens: torch.Tensor) -> None:
        """Add the next token of each of the first rows."""
        if len(self._seen):
            self._seen[: len(tokens)].scatter_(1, tokens[:, None], True)
        for ngrams, token in zip(self._ngrams, tokens.tolist() if self._ngrams else (), strict=False):
            ngrams.add(token)

    def move(self, source: int, target: int) -> None:
        """Replace a row by another."""
        if len(self._seen):
            self._seen[target] = self._seen[source]
        if self._ngrams:
            self._ngrams[target] = self._ngrams[source]

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary] of the first rows after the penalties; the argument is not changed."""
        if len(self._seen):
            penalized = torch.where(logits < 0, logits * self._penalty, logits / self._penalty)
            logits = torch.where(self._seen[: len(logits)], penalized, logits)
        if self._ngrams:
            logits = logits.clone()
            for row, ngrams in zip(logits, self._ngrams, strict=False):
                row[list(ngrams.forbidden())] = -torch.inf
        return logits


class _Ngrams:
    """The tokens that followed each `size - 1` tokens of one row."""

    def __init__(self, size: int) -> None:
        self._width = size - 1
        self._last: tuple[int, ...] = ()
        self._followers: dict[tuple[int, ...], set[int]] = defaultdict(set)

    def add(self, token: int) -> None:
        if len(self._last) == self._width:
            self._followers[self._last].add(token)
        self._last = (*self._last, token)[-self._width :] if self._width else ()

    def forbidden(self) -> set[int]:
        return self._followers.get(self._last, set())
