"""BLAKE2b (RFC 7693) without a key, for loops that Numba compiles: `hashlib` can be called from Python only.

Numbers are wrapped in their types because a compiled sum of 32 bits would have 64.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 128
NUM_ROUNDS = 12
INITIAL_STATE = (
    "6a09e667f3bcc908 bb67ae8584caa73b 3c6ef372fe94f82b a54ff53a5f1d36f1 "
    "510e527fade682d1 9b05688c2b3e6c1f 1f83d9abfb41bd6b 5be0cd19137e2179"
)
MESSAGE_ORDER = (
    "0123456789abcdef ea489fd61c02b753 b8c052fdae367194 7931dcbe265a40f8 905724afe1bc683d "
    "2c6a0b834d75fe19 c51fed4a0763928b db7ec13950f4862a 6fe9b308c2d714a5 a2847615fb9e3cd0"
)


class BlakeTables(NamedTuple):
    """Constants [8] and message order [12 * 16] of BLAKE2b, its state [8] and the block [16] that it works on."""

    initial: NDArray[np.uint64]
    order: NDArray[np.uint8]
    state: NDArray[np.uint64]
    block: NDArray[np.uint64]


def blake_tables() -> BlakeTables:
    """Tables for one thread."""
    initial = np.array([int(word, 16) for word in INITIAL_STATE.split()], np.uint64)
    rounds = MESSAGE_ORDER.split()
    order = np.array([int(digit, 16) for row in [*rounds, *rounds[:2]] for digit in row], np.uint8)
    return BlakeTables(initial, order, np.zeros(8, np.uint64), np.zeros(16, np.uint64))


def blake2b(data: NDArray[np.uint8], start: int, end: int, digest_bytes: int, tables: BlakeTables) -> None:
    """Hash `data[start:end]`; the digest is the first `digest_bytes` of `tables.state`."""
    for word in range(8):
        tables.state[word] = tables.initial[word]
    tables.state[0] ^= np.uint64(0x01010000 + digest_bytes)
    position = start
    while end - position > BLOCK_BYTES:
        _load_block(data, position, tables.block)
        position += BLOCK_BYTES
        _compress(tables, np.uint64(position - start), np.uint64(0))
    _load_last_block(data, position, end, tables.block)
    _compress(tables, np.uint64(end - start), ~np.uint64(0))


def _load_block(data: NDArray[np.uint8], start: int, block: NDArray[np.uint64]) -> None:
    for word in range(16):
        value = np.uint64(0)
        for byte in range(8):
            value |= np.uint64(data[start + 8 * word + byte]) << np.uint64(8 * byte)
        block[word] = value


def _load_last_block(data: NDArray[np.uint8], start: int, end: int, block: NDArray[np.uint64]) -> None:
    for word in range(16):
        block[word] = 0
    for byte in range(end - start):
        block[byte >> 3] |= np.uint64(data[start + byte]) << np.uint64(8 * (byte & 7))


def _compress(tables: BlakeTables, num_bytes: np.uint64, is_last: np.uint64) -> None:
    """Mix a block into the state, of which 16 words are kept in variables: an array would stay in memory."""
    state, block, order = tables.state, tables.block, tables.order
    v0, v1, v2, v3 = state[0], state[1], state[2], state[3]
    v4, v5, v6, v7 = state[4], state[5], state[6], state[7]
    v8, v9, v10, v11 = tables.initial[0], tables.initial[1], tables.initial[2], tables.initial[3]
    v12, v13 = tables.initial[4] ^ num_bytes, tables.initial[5]
    v14, v15 = tables.initial[6] ^ is_last, tables.initial[7]
    for start in range(0, 16 * NUM_ROUNDS, 16):
        v0, v4, v8, v12 = _mix(v0, v4, v8, v12, block[order[start]], block[order[start + 1]])
        v1, v5, v9, v13 = _mix(v1, v5, v9, v13, block[order[start + 2]], block[order[start + 3]])
        v2, v6, v10, v14 = _mix(v2, v6, v10, v14, block[order[start + 4]], block[order[start + 5]])
        v3, v7, v11, v15 = _mix(v3, v7, v11, v15, block[order[start + 6]], block[order[start + 7]])
        v0, v5, v10, v15 = _mix(v0, v5, v10, v15, block[order[start + 8]], block[order[start + 9]])
        v1, v6, v11, v12 = _mix(v1, v6, v11, v12, block[order[start + 10]], block[order[start + 11]])
        v2, v7, v8, v13 = _mix(v2, v7, v8, v13, block[order[start + 12]], block[order[start + 13]])
        v3, v4, v9, v14 = _mix(v3, v4, v9, v14, block[order[start + 14]], block[order[start + 15]])
    state[0] ^= v0 ^ v8
    state[1] ^= v1 ^ v9
    state[2] ^= v2 ^ v10
    state[3] ^= v3 ^ v11
    state[4] ^= v4 ^ v12
    state[5] ^= v5 ^ v13
    state[6] ^= v6 ^ v14
    state[7] ^= v7 ^ v15


def _mix(
    a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64, first: np.uint64, second: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    a = a + b + first
    d = d ^ a
    d = (d >> np.uint64(32)) | (d << np.uint64(32))
    c = c + d
    b = b ^ c
    b = (b >> np.uint64(24)) | (b << np.uint64(40))
    a = a + b + second
    d = d ^ a
    d = (d >> np.uint64(16)) | (d << np.uint64(48))
    c = c + d
    b = b ^ c
    b = (b >> np.uint64(63)) | (b << np.uint64(1))
    return a, b, c, d
