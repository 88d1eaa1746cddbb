import hashlib
import zlib

import numpy as np

from pretraining.data.encode.blake2b import LANES, blake2b
from pretraining.data.encode.key_tables import blake_states, minhash_tables, scratch_for


def test_steps_of_crc_32_are_those_of_zlib() -> None:
    tables = minhash_tables(np.ones(1, np.uint32), np.ones(1, np.uint32))
    crc = 0xFFFFFFFF
    for byte in b"some text":
        crc = int(tables.crc[(crc ^ byte) & 0xFF]) ^ crc >> 8
    assert crc ^ 0xFFFFFFFF == zlib.crc32(b"some text")


def test_a_text_of_any_length_fits_and_is_hashed() -> None:
    scratch = scratch_for(3, 16)
    scratch.text[:9] = np.frombuffer(b"three fit", np.uint8)
    states = blake_states()
    with np.errstate(over="ignore"):
        blake2b(scratch.text, 0, 9, states.fingerprint, states.lanes)
    assert states.lanes.words[: 2 * LANES : LANES].tobytes() == hashlib.blake2b(b"three fit", digest_size=16).digest()
