"""The hash of the compiled loops, here as plain Python, is that of hashlib."""

import hashlib

import numpy as np
import pytest

from pretraining.data.encode.blake2b import BLOCK_BYTES, STATE_WORDS, blake2b, hash_texts, initial_state

LENGTHS = [0, 1, 7, 8, 60, 127, 128, 129, 255, 256, 257, 600]


@pytest.mark.parametrize("digest_bytes", [8, 16, 64])
@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_blake2b(length: int, digest_bytes: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, length + 5 + BLOCK_BYTES, dtype=np.uint8)
    state = np.empty(STATE_WORDS, np.uint64)
    with np.errstate(over="ignore"):
        blake2b(data, 5, 5 + length, initial_state(digest_bytes), state)
    expected = hashlib.blake2b(data[5 : 5 + length].tobytes(), digest_size=digest_bytes).digest()
    assert state.astype("<u8").tobytes()[:digest_bytes] == expected


@pytest.mark.parametrize("key", [b"", b"k", bytes(8), bytes(range(64))])
def test_texts_with_a_key(key: bytes) -> None:
    ends = np.cumsum(LENGTHS[1:])
    begins = ends - np.array(LENGTHS[1:])
    data = np.random.default_rng(0).integers(0, 256, int(ends[-1]) + BLOCK_BYTES, dtype=np.uint8)
    digests = np.empty(len(ends) + STATE_WORDS, np.uint64)
    with np.errstate(over="ignore"):
        assert hash_texts(data, begins, ends, initial_state(8, key), digests) == len(ends)
    expected = [
        hashlib.blake2b(data[begin:end].tobytes(), digest_size=8, key=key).digest()
        for begin, end in zip(begins, ends, strict=True)
    ]
    assert digests[: len(ends)].astype("<u8").tobytes() == b"".join(expected)
