"""What the loops of `text_keys` look up, read and write."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretraining.data.encode.blake2b import BLOCK_BYTES, Lanes, empty_lanes, initial_state
from pretraining.data.encode.normalize_bytes import CharacterTables

MAX_WORDS = 2048  # in memory at once
MAX_SHIFT = 128  # bytes; most shingles have 20 to 50
CRC_POLYNOMIAL = 0xEDB88320
FINGERPRINT_BYTES = 16
BAND_KEY_BYTES = 8


class MinHashTables(NamedTuple):
    """The hash functions h -> factor * h + addend, and CRC-32.

    `crc[byte]` is the step of one byte. A CRC moves over n zero bytes when its four bytes are looked up in
    `shifts[1024 * n]` and on.
    """

    factors: NDArray[np.uint32]
    addends: NDArray[np.uint32]
    crc: NDArray[np.uint32]
    shifts: NDArray[np.uint32]


class Scratch(NamedTuple):
    """Memory of one thread: the normalized text; of up to 2,048 words the place and the CRC before and after it."""

    text: NDArray[np.uint8]
    places: NDArray[np.int64]
    before: NDArray[np.uint32]
    after: NDArray[np.uint32]
    hashes: NDArray[np.uint32]
    minima: NDArray[np.uint32]
    minima_bytes: NDArray[np.uint8]


class Texts(NamedTuple):
    """Texts in UTF-8, one behind the other, and where each ends."""

    data: NDArray[np.uint8]
    ends: NDArray[np.int64]


class BlakeStates(NamedTuple):
    """BLAKE2b of one thread: its states before a fingerprint and before the key of a band, and the lanes at work."""

    fingerprint: NDArray[np.uint64]
    band: NDArray[np.uint64]
    lanes: Lanes


class Tables(NamedTuple):
    """What is looked up; `blake` is of one thread."""

    characters: CharacterTables
    minhash: MinHashTables
    blake: BlakeStates


class Keys(NamedTuple):
    """Output of n texts: fingerprints [2 * n], band hashes [num_bands * n], and whether a text has them, [n]."""

    fingerprints: NDArray[np.uint64]
    bands: NDArray[np.uint64]
    is_done: NDArray[np.uint8]


def minhash_tables(factors: np.ndarray, addends: np.ndarray) -> MinHashTables:
    """Tables for these hash functions, which all threads share: 0.5 MB."""
    crc = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        crc = (crc >> np.uint32(1)) ^ (crc & np.uint32(1)) * np.uint32(CRC_POLYNOMIAL)
    shift = (np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)).reshape(-1)
    shifts = [shift]
    for _ in range(MAX_SHIFT):
        shift = crc[shift & 0xFF] ^ (shift >> 8)
        shifts.append(shift)
    return MinHashTables(np.ascontiguousarray(factors), np.ascontiguousarray(addends), crc, np.concatenate(shifts))


def blake_states() -> BlakeStates:
    """States for one thread."""
    return BlakeStates(initial_state(FINGERPRINT_BYTES), initial_state(BAND_KEY_BYTES), empty_lanes())


def scratch_for(longest: int, num_hashes: int) -> Scratch:
    """Memory for texts of up to `longest` bytes: three times as much, as far as a text needs it.

    A block of BLAKE2b follows the bytes that are hashed.
    """
    minima = np.empty(num_hashes + BLOCK_BYTES // 4, np.uint32)
    return Scratch(
        text=np.empty(3 * longest + 1 + BLOCK_BYTES, np.uint8),
        places=np.empty(MAX_WORDS + 1, np.int64),
        before=np.empty(MAX_WORDS + 1, np.uint32),
        after=np.empty(MAX_WORDS + 1, np.uint32),
        hashes=np.empty(MAX_WORDS + 1, np.uint32),
        minima=minima[:num_hashes],
        minima_bytes=minima.view(np.uint8),
    )
