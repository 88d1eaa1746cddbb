"""Statistics of completions: repetition, diversity, length, share that ended by EOS.

An n-gram is n consecutive tokens of one completion.

- rep-n (Welleck et al. 2019, seq-rep-n): the share of a completion's n-grams that occurred in it before, which is
  1 - distinct n-grams / n-grams; the mean over the completions that have an n-gram.
- distinct-n (Li et al. 2016): the distinct n-grams of all completions, divided by the number of their tokens.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from pretraining.evaluation.completion_file import SavedCompletion
    from pretraining.generation.generate import Completion

ORDERS = (1, 2, 3, 4)
SHOWN_CHARACTERS = 100  # of a text in a line
NGram = tuple[int, ...]
CompletionLike: TypeAlias = "Completion | SavedCompletion"


@dataclass(frozen=True)
class TextStatistics:
    """Statistics of completions; rates are from 0 to 1, `repetition[n]` is rep-n, `distinct[n]` is distinct-n.

    An order of which no completion has an n-gram is absent. The field names are those of the JSON output.
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
        """The statistics as text, one line per kind."""
        return [
            f"completions    {self.num_continuations:,} of {self.num_prompts:,} prompts, {self.eos_rate:.1%} ended by "
            "EOS",
            f"length         {self.mean_tokens:,.1f} tokens (median {self.median_tokens:,.1f}, longest "
            f"{self.longest_tokens:,}), {self.mean_words:,.1f} words",
            f"repetition     {format_orders('rep', self.repetition)}",
            f"diversity      {format_orders('distinct', self.distinct)}",
        ]


def text_statistics(completions: Sequence[CompletionLike]) -> TextStatistics:
    """Statistics of one or more completions."""
    token_lists = [completion.tokens for completion in completions]
    lengths = [len(tokens) for tokens in token_lists]
    return TextStatistics(
        num_continuations=len(completions),
        num_prompts=len({completion.prompt for completion in completions}),
        eos_rate=statistics.fmean(completion.finish_reason == "eos" for completion in completions),
        mean_tokens=statistics.fmean(lengths),
        median_tokens=statistics.median(lengths),
        longest_tokens=max(lengths),
        mean_words=statistics.fmean(len(completion.text.split()) for completion in completions),
        repetition=repetition(token_lists),
        distinct=distinct(token_lists),
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


def format_orders(name: str, rates: dict[int, float]) -> str:
    """Rates by n as text: rep-1 12.0%  rep-2 3.0%."""
    return "  ".join(f"{name}-{order} {value:.1%}" for order, value in rates.items()) or "no token"
