"""The hash of the compiled loops, here as plain Python, is that of hashlib."""

import hashlib

import numpy as np
import pytest

from pretraining.data.encode.blake2b import blake2b, blake_tables


@pytest.mark.parametrize("digest_bytes", [8, 16, 64])
@pytest.mark.parametrize("length", [0, 1, 7, 8, 60, 127, 128, 129, 255, 256, 257, 600])
def test_it_is_blake2b(length: int, digest_bytes: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, length + 7, dtype=np.uint8)
    tables = blake_tables()
    with np.errstate(over="ignore"):
        blake2b(data, 5, 5 + length, digest_bytes, tables)
    expected = hashlib.blake2b(data[5 : 5 + length].tobytes(), digest_size=digest_bytes).digest()
    assert tables.state.astype("<u8").tobytes()[:digest_bytes] == expected
