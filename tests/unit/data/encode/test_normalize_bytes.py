"""Character tables of all of Unicode, and normalization, here as plain Python, against Python's own methods."""

import unicodedata
from functools import cache

import numpy as np
import pytest

from pretraining.data.encode.minhash import UNSPACED, WORD, normalized
from pretraining.data.encode.normalize_bytes import (
    FOLDS,
    MAY_COMPOSE,
    SPACE,
    character_tables,
    decode,
    encode,
    normalize,
)
from pretraining.data.encode.normalize_bytes import UNSPACED as UNSPACED_BIT
from pretraining.data.encode.normalize_bytes import WORD as WORD_BIT

tables = cache(character_tables)


@pytest.fixture(scope="module")
def characters() -> list[str]:
    return [chr(code) for code in range(0x110000)]


@pytest.fixture(scope="module")
def entries() -> np.ndarray:
    """Those of all characters."""
    return tables().entries[(tables().pages[:, None] + np.arange(256)).reshape(-1)]


def test_the_tables_have_every_character(characters: list[str], entries: np.ndarray) -> None:
    def characters_with(bit: int) -> list[str]:
        return [characters[code] for code in np.flatnonzero(entries & bit)]

    assert characters_with(SPACE) == [each for each in characters if each.isspace()]
    assert characters_with(WORD_BIT | UNSPACED_BIT) == WORD.findall(" ".join(characters))
    assert all(each in WORD.pattern or WORD.fullmatch(each * 2) is None for each in characters_with(UNSPACED_BIT))
    assert characters_with(FOLDS) == [each for each in characters if each.casefold() != each]
    combining = [unicodedata.combining(each) for each in characters]
    assert np.array_equal(entries >> 8 & 0xFF, combining)
    assert UNSPACED.count("-") == 7


def test_what_the_quick_check_takes_is_in_nfc(characters: list[str], entries: np.ndarray) -> None:
    """No character that it takes is changed by itself, or is joined with the one before."""
    taken = [each for each in characters if not entries[ord(each)] & MAY_COMPOSE and not "\ud800" <= each < "\ue000"]
    assert len(taken) > 1_100_000
    assert unicodedata.is_normalized("NFC", " ".join(taken))
    decompositions = [unicodedata.decomposition(each).split() for each in characters]
    pairs = [
        (int(parts[0], 16), int(parts[1], 16)) for parts in decompositions if len(parts) == 2 and "<" not in parts[0]
    ]
    pairs += [(ord("ᄀ"), vowel) for vowel in range(0x1161, 0x1176)] + [
        (ord("가"), end) for end in range(0x11A8, 0x11C3)
    ]
    assert len(pairs) > 1000
    assert all(entries[second] & MAY_COMPOSE for _, second in pairs)
    for first in "aeowAEOω":
        assert unicodedata.is_normalized("NFC", first + first.join(taken))


@pytest.mark.parametrize("code", [0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF])
def test_characters_are_decoded_and_encoded_as_utf_8(code: int) -> None:
    data = np.frombuffer(chr(code).encode(), np.uint8)
    assert decode(data, 0) == (code, len(data))
    output = np.zeros(5, np.uint8)
    assert encode(code, output, 1) == 1 + len(data)
    assert output[1 : 1 + len(data)].tobytes() == data.tobytes()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        " A  Bc\t\u2003d\u00a0 ",
        "Straße ΣΊΣΥΦΟΣ ΐΐΐ İ ﬃ Ǆ \u13a0",
        "\u1e9e\u3000x\x1f\x85",
        "今天 เมื่อ 𠀀 𐐀",
        "e\u0323\u0307",
    ],
)
def test_texts_are_normalized_as_in_python(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    data = np.frombuffer(f"x{composed}y".encode(), np.uint8)
    output = np.zeros(3 * len(data) + 1, np.uint8)
    length = normalize(data, 1, len(data) - 1, 1, tables(), output)
    assert output[:length].tobytes().decode() == normalized(text)


@pytest.mark.parametrize("text", ["e\u0301", "\u0344", "\u1112\u1161\u11ab", "\u0915\u093c", "a\u0307\u0323", "\u212b"])
def test_a_text_that_may_not_be_in_nfc_is_given_back(text: str) -> None:
    data = np.frombuffer(text.encode(), np.uint8)
    assert normalize(data, 0, len(data), 0, tables(), np.zeros(30, np.uint8)) == -1
