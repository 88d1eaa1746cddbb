"""What a set of continuations is like: how repetitive, how varied, how long, how often ended by EOS.

An n-gram is n tokens in a row of one continuation.

- rep-n (Welleck et al. 2019, seq-rep-n): the share of a continuation's n-grams that stood in it before, which is
  1 - distinct n-grams / n-grams; the mean over the continuations that have an n-gram.
- distinct-n (Li et al. 2016): the distinct n-grams of all continuations together, over the tokens of all of them.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

ORDERS = (1, 2, 3, 4)
NGram = tuple[int, ...]


class Sampled(Protocol):
    """A continuation: its text, the ids of its tokens without EOS, and why it ended ("eos" or something else)."""

    @property
    def prompt(self) -> str:
        """What it continues."""

    @property
    def text(self) -> str:
        """What was added to the prompt."""

    @property
    def tokens(self) -> Sequence[int]:
        """The ids of the text."""

    @property
    def finish_reason(self) -> str:
        """Why it ended."""


@dataclass(frozen=True)
class TextStatistics:
    """Figures of continuations; rates are shares from 0 to 1, `repetition[n]` is rep-n, `distinct[n]` is distinct-n.

    An order of which no continuation has an n-gram is left out.
    """

    num_continuations: int
    num_prompts: int
    eos_rate: float
    mean_tokens: float
    median_tokens: float
    longest_tokens: int
    mean_words: float
    repetition: dict[int, float]
    distinct: dict[int, float]

    def lines(self) -> list[str]:
        """The figures as they are shown, a line for each kind."""
        ended = f"{self.eos_rate:.1%} ended by EOS"
        return [
            f"continuations  {self.num_continuations:,} of {self.num_prompts:,} prompts, {ended}",
            f"length         {self.mean_tokens:,.1f} tokens (median {self.median_tokens:,.1f}, longest "
            f"{self.longest_tokens:,}), {self.mean_words:,.1f} words",
            f"repetition     {_by_order('rep', self.repetition)}",
            f"variety        {_by_order('distinct', self.distinct)}",
        ]


def text_statistics(continuations: Sequence[Sampled]) -> TextStatistics:
    """The figures of `continuations`, of which there is one or more."""
    lengths = [len(continuation.tokens) for continuation in continuations]
    return TextStatistics(
        num_continuations=len(continuations),
        num_prompts=len({continuation.prompt for continuation in continuations}),
        eos_rate=statistics.fmean(continuation.finish_reason == "eos" for continuation in continuations),
        mean_tokens=statistics.fmean(lengths),
        median_tokens=statistics.median(lengths),
        longest_tokens=max(lengths),
        mean_words=statistics.fmean(len(continuation.text.split()) for continuation in continuations),
        repetition=repetition([continuation.tokens for continuation in continuations]),
        distinct=distinct([continuation.tokens for continuation in continuations]),
    )


def repetition(token_lists: Iterable[Sequence[int]]) -> dict[int, float]:
    """rep-n by n.

    >>> repetition([[1, 2, 1, 2, 1]])
    {1: 0.6, 2: 0.5, 3: 0.33333333333333337, 4: 0.0}
    """
    token_lists = list(token_lists)
    found = {}
    for order in ORDERS:
        grams = [_ngrams(tokens, order) for tokens in token_lists if len(tokens) >= order]
        if grams:
            found[order] = statistics.fmean(1 - len(set(some)) / len(some) for some in grams)
    return found


def distinct(token_lists: Iterable[Sequence[int]]) -> dict[int, float]:
    """distinct-n by n.

    >>> distinct([[1, 2, 1], [1, 2]])
    {1: 0.4, 2: 0.4, 3: 0.2}
    """
    token_lists = list(token_lists)
    num_tokens = sum(map(len, token_lists))
    grams = {order: {gram for tokens in token_lists for gram in _ngrams(tokens, order)} for order in ORDERS}
    return {order: len(some) / num_tokens for order, some in grams.items() if some}


def _ngrams(tokens: Sequence[int], order: int) -> list[NGram]:
    return list(zip(*(tokens[start:] for start in range(order)), strict=False))


def _by_order(name: str, figures: dict[int, float]) -> str:
    return "  ".join(f"{name}-{order} {value:.1%}" for order, value in figures.items()) or "no token"
