"""Eight bytes at once, for loops that Numba compiles. Separate because all of them compile it into their own unit.

Places are unsigned, which saves Numba a comparison per access; together with signed numbers they would become a float.
"""

import numpy as np
from numpy.typing import NDArray

WORD_BYTES = 8
ONE, TWO, THREE, FOUR, FIVE, SIX, SEVEN, EIGHT = (np.uint64(number) for number in range(1, WORD_BYTES + 1))


def load_word(data: NDArray[np.uint8], place: np.uint64) -> np.uint64:
    """Eight bytes, the first one lowest; LLVM makes one load of them."""
    return (
        np.uint64(data[place])
        | np.uint64(data[place + ONE]) << np.uint64(8)
        | np.uint64(data[place + TWO]) << np.uint64(16)
        | np.uint64(data[place + THREE]) << np.uint64(24)
        | np.uint64(data[place + FOUR]) << np.uint64(32)
        | np.uint64(data[place + FIVE]) << np.uint64(40)
        | np.uint64(data[place + SIX]) << np.uint64(48)
        | np.uint64(data[place + SEVEN]) << np.uint64(56)
    )


def store_word(data: NDArray[np.uint8], place: np.uint64, word: np.uint64) -> None:
    """Write what `load_word` reads; LLVM makes one store of it."""
    data[place] = np.uint8(word & np.uint64(0xFF))
    data[place + ONE] = np.uint8((word >> np.uint64(8)) & np.uint64(0xFF))
    data[place + TWO] = np.uint8((word >> np.uint64(16)) & np.uint64(0xFF))
    data[place + THREE] = np.uint8((word >> np.uint64(24)) & np.uint64(0xFF))
    data[place + FOUR] = np.uint8((word >> np.uint64(32)) & np.uint64(0xFF))
    data[place + FIVE] = np.uint8((word >> np.uint64(40)) & np.uint64(0xFF))
    data[place + SIX] = np.uint8((word >> np.uint64(48)) & np.uint64(0xFF))
    data[place + SEVEN] = np.uint8(word >> np.uint64(56))


def prefetch(data: NDArray[np.uint64], place: np.uint64) -> None:
    """Let the CPU fetch an element that is soon needed: an instruction where compiled, nothing in Python."""
