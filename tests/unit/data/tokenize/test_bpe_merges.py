"""Words of any length have the reference's ids."""

import json
import random
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from pretraining.data.tokenize import bpe_merges
from pretraining.data.tokenize.backends import BackendDiffersError
from pretraining.data.tokenize.compiled_backend import CompiledBackend, Functions
from tests.unit.data.tokenize.test_bpe_words import assert_same, theirs_of
from tests.unit.data.tokenize.vocabularies import chain, everything_joins, small


@pytest.mark.parametrize("make", [small, everything_joins], ids=lambda make: make.__name__)
def test_words_longer_than_a_window(make: Callable[[], Tokenizer], compiled: Functions) -> None:
    chance = random.Random(2)
    lengths = [15, 16, 63, 64, 65, 66, 127, 1000, 20_000]
    texts = [letters * length for letters in ("a", "b", "ab", "abc", "aab", "▁", "é", "東", "x") for length in lengths]
    texts += ["".join(chance.choices("abc", k=length)) for length in lengths for _ in range(20)]
    texts += ["".join(chance.choices("abcdeé▁ ", [9, 9, 9, 9, 9, 1, 1, 1], k=5000)) for _ in range(20)]
    assert_same(make(), compiled, texts)


def test_a_document_of_millions_of_characters_without_a_cut(compiled: Functions) -> None:
    tokenizer = small()
    backend = CompiledBackend(json.loads(tokenizer.to_str()), compiled)
    unit = theirs_of(tokenizer, "a" * 4000)
    flat = backend.encode(["a" * 3_000_000])
    assert flat.ids[: len(unit) - 4].tolist() == unit[:-4]
    assert flat.lengths.tolist() == [len(flat.ids)]
    assert sum(len(tokenizer.id_to_token(number)) for number in flat.ids.tolist()) == 3_000_001


@pytest.mark.parametrize("how", ["compiled", "interpreted"])
def test_a_window_is_cut_only_where_its_end_decides_nothing(how: str, request: pytest.FixtureRequest) -> None:
    """Every pair of a window is wrong here if an odd number of characters follows; the window then grows."""
    functions, tokenizer = request.getfixturevalue(how), chain(400)
    letters = "".join(chr(0x4E00 + number) for number in range(400))
    lengths = [*range(60, 70), *range(120, 140), *range(250, 262), 400] if how == "compiled" else [64, 65, 66, 67, 270]
    assert_same(tokenizer, functions, [letters[begin : begin + length] for begin in (0, 1) for length in lengths])


# With the window of machine code it takes 10 s and is long: that is another number in the same loops.
@pytest.mark.parametrize(
    ("how", "window"), [("interpreted", 64), pytest.param("compiled", bpe_merges.LAST_WINDOW, marks=pytest.mark.long)]
)
def test_a_word_that_no_window_divides_is_refused(
    how: str, window: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    functions, tokenizer = request.getfixturevalue(how), chain(window + 1)
    monkeypatch.setattr(bpe_merges, "LAST_WINDOW", window)
    letters = "".join(chr(0x4E00 + number) for number in range(window + 1))
    backend = assert_same(tokenizer, functions, [letters[:-4], letters[:-3], "a " + letters[:-6] + " b"])
    with pytest.raises(BackendDiffersError, match=r"compiled cannot divide a text of [\d,]+ bytes or less"):
        backend.encode([letters])
    with pytest.raises(BackendDiffersError, match="compiled cannot divide a text"):
        backend.encode(["a " + letters + " b ab" * 300])  # also if words follow
    assert backend.encode([letters[:50]]).ids.tolist() == theirs_of(tokenizer, letters[:50]), "and it still works"


def test_hashes_spread() -> None:
    slots = {bpe_merges.hashed(left << 32 | right) & 0xFFFF for left in range(100) for right in range(100)}
    assert len(slots) > 8000
