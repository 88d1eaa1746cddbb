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
from tests.unit.data.tokenize.test_backends import CHARACTERS, odd_texts, reference_tokenizer
from tests.unit.data.tokenize.vocabularies import VOCABULARIES, everything_joins, make_tokenizer, small


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
    assert_same(make(), compiled, all_texts(" ▁abé東x🚆", length))
    assert_same(make(), compiled, all_texts("abc ", length_of_few))


@pytest.mark.parametrize("make", VOCABULARIES.values(), ids=VOCABULARIES)
def test_the_same_loops_in_python(make: Callable[[], Tokenizer], interpreted: Functions) -> None:
    """Arrays check their bounds there, which machine code does not."""
    assert_same(
        make(),
        interpreted,
        [
            *all_texts(" aé東x", 3),
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


@pytest.mark.parametrize("how", ["compiled", "interpreted"])
def test_every_number_of_ids_comes_back_from_the_caches(how: str, request: pytest.FixtureRequest) -> None:
    """Words of up to 33 bytes, each twice."""
    functions, chance = request.getfixturevalue(how), random.Random(5)
    words = ["".join(chance.choices("abcde", k=length)) for length in range(34) for _ in range(8)]
    tokenizer = everything_joins(normalizer=None)
    assert_same(tokenizer, functions, words * 2)
    found = [(len(word) <= 15, len(theirs_of(tokenizer, word))) for word in words]
    twos = make_tokenizer([("a", "b"), ("b", "a")], "ab", normalizer=None)
    assert_same(twos, functions, [("ab" * 17)[:length] for length in range(35)] * 2, cache_entries=8)
    assert {(True, count) for count in range(7)} | {(False, count) for count in range(7, 13)} <= set(found)


@pytest.mark.parametrize("how", ["compiled", "interpreted"])
def test_words_that_differ_in_zeros_at_their_end_only(how: str, request: pytest.FixtureRequest) -> None:
    tokenizer = make_tokenizer([("a", "a"), ("\0", "\0"), ("a", "\0")], "a\0", normalizer=None)
    texts = ["a" * before + "\0" * after for before in range(1, 34) for after in range(4)]
    assert_same(tokenizer, request.getfixturevalue(how), texts)


def test_a_tiny_cache_that_is_always_full(compiled: Functions) -> None:
    chance = random.Random(3)
    texts = ["".join(chance.choices(CHARACTERS, k=200)) for _ in range(200)]
    backend = assert_same(everything_joins(), compiled, texts, cache_entries=4)
    assert_same(small(), compiled, texts, cache_entries=1)
    assert len(backend._idle_states) == 1
