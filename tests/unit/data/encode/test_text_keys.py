"""The loops as plain Python give the keys of datasketch; test_fast_keys.py has the compiled ones."""

import unicodedata
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from pretraining.data.encode.fast_keys import PROBES, keys_in_python
from pretraining.data.encode.key_tables import (
    MAX_SHIFT,
    MAX_WORDS,
    Keys,
    Tables,
    Texts,
    blake_states,
    minhash_tables,
    scratch_for,
)
from pretraining.data.encode.minhash import MinHashBands
from pretraining.data.encode.normalize_bytes import character_tables
from pretraining.data.encode.text_keys import _add_bytes, _shift, text_keys

characters = cache(character_tables)
MINHASH = MinHashBands(0.8)
TABLES = minhash_tables(MINHASH.factors, MINHASH.addends)


@pytest.fixture(autouse=True)
def _wrapping_numbers() -> Iterator[None]:
    with np.errstate(over="ignore"):
        yield


def keys_of(texts: list[str], num_bands: int) -> Keys:
    encoded = [unicodedata.normalize("NFC", text).encode() for text in texts]
    keys = Keys(
        np.zeros(2 * len(texts), np.uint64), np.zeros(num_bands * len(texts), np.uint64), np.zeros(len(texts), np.uint8)
    )
    scratch = scratch_for(max(map(len, encoded)), len(TABLES.factors))
    together = Texts(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(text) for text in encoded]))
    tables = Tables(characters(), TABLES, blake_states())
    assert text_keys(together, 1, num_bands, tables, scratch, keys) == 0
    assert keys.is_done.all()
    return keys


def test_keys_are_those_of_datasketch() -> None:
    texts = PROBES[:-1]
    keys = keys_of(texts, MINHASH.num_bands)
    fingerprints, bands = keys_in_python(texts, MINHASH)
    assert np.array_equal(keys.fingerprints.reshape(fingerprints.shape), fingerprints)
    assert np.array_equal(keys.bands.reshape(bands.shape), bands)


def test_texts_longer_than_the_memory_for_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretraining.data.encode.text_keys.MAX_WORDS", 8)
    texts = [" ".join(f"w{word}" for word in range(number)) for number in range(25)] + ["ก" * 25, "xก" * 9]
    assert MAX_WORDS > 8
    keys = keys_of(texts, MINHASH.num_bands)
    assert np.array_equal(keys.bands.reshape(len(texts), -1), MINHASH.bands(texts))


def test_fingerprints_alone() -> None:
    keys = keys_of(PROBES[:-1], 0)
    assert np.array_equal(keys.fingerprints.reshape(-1, 2), keys_in_python(PROBES[:-1], None)[0])


@pytest.mark.parametrize("num_bytes", [0, 1, 7, MAX_SHIFT - 1, MAX_SHIFT])
def test_a_crc_moves_over_zero_bytes(num_bytes: int) -> None:
    before = np.uint32(0x12345678)
    after = _add_bytes(before, np.zeros(num_bytes, np.uint8), 0, num_bytes, TABLES.crc)
    assert _shift(before, num_bytes, TABLES.shifts) == after
    data = np.frombuffer(b"The quick brown fox", np.uint8)
    whole = _add_bytes(np.uint32(0xFFFFFFFF), data, 0, len(data), TABLES.crc)
    assert int(whole) ^ 0xFFFFFFFF == zlib.crc32(data.tobytes())
