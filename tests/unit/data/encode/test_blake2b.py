"""The hash of the loops, compiled and as plain Python, is that of hashlib."""

import hashlib

import numpy as np
import pytest

from pretraining.data.encode.blake2b import BLOCK_BYTES, LANES, Lanes, blake2b, empty_lanes, initial_state
from pretraining.data.tokenize.compiled_backend import Functions

LENGTHS = [0, 1, 7, 8, 60, 127, 128, 129, 255, 256, 257, 600]
KEYS = [b"", b"k", bytes(8), bytes(range(64))]


def random_bytes(num_bytes: int) -> np.ndarray:
    return np.random.default_rng(num_bytes).integers(0, 256, num_bytes, dtype=np.uint8)


def hashes(functions: Functions, lengths: list[int], key: bytes) -> tuple[np.ndarray, np.ndarray, Lanes]:
    """The digests of texts of these lengths by the loops and by hashlib, and the lanes afterwards."""
    ends = np.cumsum(lengths, dtype=np.int64)
    begins = ends - np.array(lengths, np.int64)
    data = random_bytes(sum(lengths) + BLOCK_BYTES)
    found, lanes = np.zeros(len(lengths), np.uint64), empty_lanes()
    assert functions.hash_texts(data, begins, ends, initial_state(8, key), lanes, found) == len(lengths)
    texts = [data[begin:end].tobytes() for begin, end in zip(begins, ends, strict=True)]
    digests = [hashlib.blake2b(text, digest_size=8, key=key).digest() for text in texts]
    return found, np.frombuffer(b"".join(digests), "<u8"), lanes


@pytest.mark.parametrize("digest_bytes", [8, 16, 64])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_blake2b(length: int, digest_bytes: int) -> None:
    data, lanes = random_bytes(length + 5 + BLOCK_BYTES), empty_lanes()
    with np.errstate(over="ignore"):
        blake2b(data, 5, 5 + length, initial_state(digest_bytes), lanes)
    expected = hashlib.blake2b(data[5 : 5 + length].tobytes(), digest_size=digest_bytes).digest()
    assert lanes.words[: 8 * LANES : LANES].astype("<u8").tobytes()[:digest_bytes] == expected


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", ["compiled", "interpreted"])
def test_texts_of_all_lengths_in_one_call(request: pytest.FixtureRequest, kind: str, key: bytes) -> None:
    lengths = list(range(1 if key else 0, 301))
    np.random.default_rng(0).shuffle(lengths)
    found, expected, _ = hashes(request.getfixturevalue(kind), lengths, key)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", ["compiled", "interpreted"])
@pytest.mark.parametrize("number", [0, 1, 2, LANES - 1, LANES, LANES + 1, 3 * LANES])
def test_fewer_and_more_texts_than_lanes(request: pytest.FixtureRequest, kind: str, number: int) -> None:
    for lengths in ([128] * number, list(range(100, 100 + 60 * number, 60)), list(range(60 * number, 0, -60))):
        found, expected, lanes = hashes(request.getfixturevalue(kind), lengths, b"key")
        assert np.array_equal(found, expected)
        assert (lanes.sizes == -1).all()  # so the next call may have them


@pytest.mark.parametrize("place", [0, 3, LANES, 40])
def test_one_long_text_among_empty_ones(compiled: Functions, place: int) -> None:
    lengths = [0] * 41
    lengths[place] = 10_000_001
    found, expected, _ = hashes(compiled, lengths, b"")
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("key", [b"", b"key"])
def test_very_unequal_texts(compiled: Functions, key: bytes) -> None:
    lengths = [1 + int(length) for length in np.random.default_rng(1).lognormal(5, 3, 300)]
    assert max(lengths) > 1000 * sorted(lengths)[150]
    found, expected, _ = hashes(compiled, lengths, key)
    assert np.array_equal(found, expected)
