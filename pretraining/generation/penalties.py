"""What stands in a row already, prompt included, makes tokens less likely or forbids them."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.generation.decoder import LlamaDecoder


class Penalties:
    """--repetition_penalty and --no_repeat_ngram_size over rows of any lengths; without them it keeps nothing."""

    def __init__(self, arguments: GenerateArguments, decoder: LlamaDecoder) -> None:
        self._penalty = arguments.repetition_penalty
        self._ngram_size = arguments.no_repeat_ngram_size
        num_penalised = decoder.num_rows if self._penalty != 1 else 0
        self._seen = torch.zeros((num_penalised, decoder.vocab_size), dtype=torch.bool, device=decoder.device)
        self._ngrams = [_Ngrams(self._ngram_size) for _ in range(decoder.num_rows if self._ngram_size else 0)]

    def begin(self, row: int, ids: Sequence[int]) -> None:
        """Let a row hold these ids."""
        if len(self._seen):
            self._seen[row] = False
            self._seen[row, list(ids)] = True
        if self._ngrams:
            self._ngrams[row] = _Ngrams(self._ngram_size)
            for token in ids:
                self._ngrams[row].add(token)

    def add(self, tokens: torch.Tensor) -> None:
        """Note the next token of each of the first rows."""
        if len(self._seen):
            self._seen[: len(tokens)].scatter_(1, tokens[:, None], True)
        for ngrams, token in zip(self._ngrams, tokens.tolist() if self._ngrams else (), strict=False):
            ngrams.add(token)

    def move(self, source: int, target: int) -> None:
        """Let a row be what another is."""
        if len(self._seen):
            self._seen[target] = self._seen[source]
        if self._ngrams:
            self._ngrams[target] = self._ngrams[source]

    def applied(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary] of the first rows with the penalties; the given ones stay."""
        if len(self._seen):
            less = torch.where(logits < 0, logits * self._penalty, logits / self._penalty)
            logits = torch.where(self._seen[: len(logits)], less, logits)
        if self._ngrams:
            logits = logits.clone()
            for row, ngrams in zip(logits, self._ngrams, strict=False):
                row[list(ngrams.forbidden())] = -torch.inf
        return logits


class _Ngrams:
    """The tokens that followed each run of `size - 1` tokens in one row."""

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
