"""The loops give the reference's ids: for all short texts and for pieces joined at random."""

import itertools
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from pretraining.data.tokenize.backends import ReferenceBackend
from pretraining.data.tokenize.compiled_backend import CompiledBackend, Functions
from tests.unit.data.tokenize.test_backends import odd_texts, reference_tokenizer
from tests.unit.data.tokenize.vocabularies import VOCABULARIES


def assert_same(tokenizer: Tokenizer, functions: Functions, texts: Iterable[str], **options: int) -> CompiledBackend:
    """The backend, after it has given the reference's ids for `texts`."""
    backend = CompiledBackend(json.loads(tokenizer.to_str()), functions, **options)
    texts = list(texts)
    ours, theirs = backend.encode(texts), ReferenceBackend(tokenizer).encode(texts)
    if not np.array_equal(ours.lengths, theirs.lengths) or not np.array_equal(ours.ids, theirs.ids):
        for text in texts:
            assert backend.encode([text]).ids.tolist() == theirs_of(tokenizer, text), text[:300]
        raise AssertionError("only together")
    return backend


EIGHT_MORE = "ab a x b"  # where eight characters of ASCII follow, cuts are found by a table of their own


def theirs_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def all_texts(alphabet: str, length: int) -> list[str]:
    return ["".join(letters) for size in range(length + 1) for letters in itertools.product(alphabet, repeat=size)]


@pytest.mark.guarantee("The compiled encoder gives the reference's ids for every short text of a small vocabulary.")
# Longer texts are long: a short one has every character on both sides of a place.
@pytest.mark.parametrize(("length", "length_of_few"), [(4, 6), pytest.param(5, 7, marks=pytest.mark.long)])
@pytest.mark.parametrize("make", VOCABULARIES.values(), ids=VOCABULARIES)
def test_all_pairs_of_characters_at_all_cuts(
    make: Callable[[], Tokenizer], length: int, length_of_few: int, compiled: Functions
) -> None:
    """Each character of the vocabulary and two unknown ones stand on both sides of each place of a short text."""
    texts = all_texts(" ▁abé東x🚆", length) + all_texts("abc ", length_of_few)
    assert_same(make(), compiled, texts)
    assert_same(make(), compiled, [text + EIGHT_MORE for text in texts])


@pytest.mark.parametrize("make", VOCABULARIES.values(), ids=VOCABULARIES)
def test_the_same_loops_in_python(make: Callable[[], Tokenizer], interpreted: Functions) -> None:
    """Arrays check their bounds there, which machine code does not."""
    assert_same(
        make(),
        interpreted,
        [
            *all_texts(" aé東x", 3),
            *(text + EIGHT_MORE for text in all_texts(" aé東x", 3)),
            "ab" * 60 + "🚆🚆x",
            "a" * 15,
            "b" * 16,
            "b" * 31,
            "b" * 32,
            "aab" * 6 + "é" * 3,
            "x" * 20,
            "\0a\0",
        ],
    )


@pytest.mark.parametrize("make", VOCABULARIES.values(), ids=VOCABULARIES)
def test_odd_texts(make: Callable[[], Tokenizer], compiled: Functions) -> None:
    assert_same(make(), compiled, odd_texts(500))


def joined_pieces(pieces: list[str], num_cuts: int) -> list[str]:
    chance = random.Random(1)
    return ["".join(chance.choices(pieces, k=1000)) for _ in range(num_cuts // 1000)]


@pytest.mark.guarantee("The compiled encoder gives the reference's ids where any two tokens of Llama 2 meet at random.")
# More cuts are long: they are of the same kind.
@pytest.mark.parametrize("num_cuts", [200_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_cuts_between_pieces_of_llama2(num_cuts: int, compiled: Functions, real_data: Path) -> None:
    tokenizer = reference_tokenizer(real_data / "llama2/tokenizer.json")
    pieces = [piece.replace("▁", " ") for piece, number in tokenizer.get_vocab().items() if number > 258]
    assert_same(tokenizer, compiled, joined_pieces(pieces, num_cuts))


@pytest.mark.parametrize("make", VOCABULARIES.values(), ids=VOCABULARIES)
def test_cuts_between_pieces(make: Callable[[], Tokenizer], compiled: Functions) -> None:
    tokenizer = make()
    pieces = [*tokenizer.get_vocab(), *"x🚆 \n", " a", "\0"]
    assert_same(tokenizer, compiled, joined_pieces(pieces, 20_000))


# All news are long: a quarter holds the same.
@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.long)])
def test_llama2_of_odd_texts_and_real_news(step: int, compiled: Functions, real_data: Path) -> None:
    """Of the news every fourth text, or all."""
    tokenizer = reference_tokenizer(real_data / "llama2/tokenizer.json")
    lines = (real_data / "news.jsonl").read_text(encoding="utf-8").splitlines()
    news = [json.loads(line)["text"] for line in lines[::step]]
    assert_same(tokenizer, compiled, odd_texts(3000 // step))
    assert_same(tokenizer, compiled, news)
    assert_same(tokenizer, compiled, news[:50], cache_entries=16)
