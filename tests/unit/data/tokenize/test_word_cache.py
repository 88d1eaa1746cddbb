"""The caches give back the ids of words of all sizes, and no other word's."""

import random

import pytest

from pretraining.data.tokenize.compiled_backend import Functions
from pretraining.data.tokenize.word_cache import SHORT_BYTES
from tests.unit.data.tokenize.test_backends import CHARACTERS
from tests.unit.data.tokenize.test_bpe_words import assert_same, theirs_of
from tests.unit.data.tokenize.vocabularies import everything_joins, make_tokenizer, small


@pytest.mark.parametrize("how", ["compiled", "interpreted"])
@pytest.mark.parametrize(("first_id", "id_bytes"), [(0, 2), (70_000, 4)])
def test_every_number_of_ids_comes_back_from_the_caches(
    first_id: int, id_bytes: int, how: str, request: pytest.FixtureRequest
) -> None:
    """Words of up to 33 bytes, each twice, with ids of 2 bytes and of 4: one cache has 16 bytes of ids, one has 32."""
    functions, chance = request.getfixturevalue(how), random.Random(5)
    words = ["".join(chance.choices("abcde", k=length)) for length in range(34) for _ in range(8)]
    tokenizer = everything_joins(normalizer=None, first_id=first_id)
    assert_same(tokenizer, functions, words * 2)
    twos = make_tokenizer([("a", "b"), ("b", "a")], "ab", normalizer=None, first_id=first_id)
    halves = [("ab" * 17)[:length] for length in range(35)]
    assert_same(twos, functions, halves * 2, cache_entries=8)
    sizes = {(len(word) <= SHORT_BYTES, id_bytes * len(theirs_of(tokenizer, word))) for word in words}
    sizes |= {(len(word) <= SHORT_BYTES, id_bytes * len(theirs_of(twos, word))) for word in halves}
    assert {(True, size) for size in range(0, 17, id_bytes)} <= sizes, "and none or one that is too large"
    assert {(False, size) for size in range(28, 33, id_bytes)} <= sizes


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
