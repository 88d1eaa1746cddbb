"""Filters and penalties are transformers' own; a draw follows the probabilities, and the number that it is given."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.generation.sampling import Penalties, log_probabilities, random_numbers, sample_tokens
from tests.rounding import assert_same_sums

VOCAB_SIZE = 200
NOTHING = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0}
FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"top_k": 7},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"top_p": 1e-6},
]


@pytest.mark.parametrize("flags", FILTERS, ids=str)
def test_draws_have_the_probabilities_of_transformers(flags: dict[str, Any]) -> None:
    """Evenly spread numbers give each token its share of them, to the width of one.

    And half of one: 200 probabilities are summed up in fp32, which are off by 200 roundoffs, 1.2e-5, at their end.
    """
    arguments = GenerateArguments(**{**NOTHING, **flags})
    logits = 3 * torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    scores = TemperatureLogitsWarper(arguments.temperature)(None, logits)
    scores = TopKLogitsWarper(arguments.top_k)(None, scores) if arguments.top_k else scores
    scores = TopPLogitsWarper(arguments.top_p)(None, scores)
    expected = MinPLogitsWarper(arguments.min_p)(None, scores).softmax(-1)[0]

    count = 20_000
    numbers = [(place + 0.5) / count for place in range(count)]
    tokens = sample_tokens(logits.expand(count, -1), numbers, arguments)
    found = torch.bincount(tokens, minlength=VOCAB_SIZE) / count
    assert set(found.nonzero().flatten().tolist()) <= set(expected.nonzero().flatten().tolist())
    torch.testing.assert_close(found, expected, atol=1.5 / count, rtol=0)


def test_greedy_takes_the_most_likely() -> None:
    logits = torch.randn(5, VOCAB_SIZE)
    tokens = sample_tokens(logits, [0.99] * 5, GenerateArguments(greedy=True))
    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert_same_sums(log_probabilities(logits, tokens), logits.log_softmax(-1).amax(-1), VOCAB_SIZE)


def test_numbers_belong_to_a_text_and_go_on_as_they_began() -> None:
    assert random_numbers(1, 2, 3, count=5) == random_numbers(1, 2, 3, count=9)[:5]
    firsts = {random_numbers(*seeds, count=1)[0] for seeds in [(1, 2, 3), (2, 1, 3), (1, 3, 2), (1, 2, 4), (0, 0, 0)]}
    assert len(firsts) == 5


@pytest.mark.parametrize("size", [1, 2, 3])
def test_penalties_are_those_of_transformers_whatever_stands_in_the_other_rows(size: int) -> None:
    arguments = GenerateArguments(repetition_penalty=1.3, no_repeat_ngram_size=size)
    decoder: Any = SimpleNamespace(num_rows=3, vocab_size=8, device=torch.device("cpu"))
    penalties = Penalties(arguments, decoder)
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(0, 8, (length,), generator=generator).tolist() for length in (1, 4, 9)]
    for row, ids in enumerate(texts):
        penalties.reset(row, ids)
    for step in range(12):
        logits = torch.randn(len(texts), 8, generator=generator)
        found = penalties.apply(logits)
        for row, ids in enumerate(texts):
            seen = torch.tensor([ids])
            expected = RepetitionPenaltyLogitsProcessor(1.3)(seen, logits[row : row + 1].clone())
            expected = NoRepeatNGramLogitsProcessor(size)(seen, expected)
            assert torch.equal(found[row], expected[0]), (step, row)
        tokens = torch.randint(0, 8, (len(texts),), generator=generator)
        penalties.add(tokens)
        for ids, token in zip(texts, tokens.tolist(), strict=True):
            ids.append(token)
        if step == 6:  # the first text ends, the last one moves into its row
            penalties.move(2, 0)
            texts = [texts[2], texts[1]]
