"""Assign documents to splits by a hash of seed and text.

The split depends neither on the order of the input nor on the number of workers, and identical texts never land in two
splits. Separate because most importers need only the names of the splits.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from pretraining.data.encode.blake2b import initial_state

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
HASH_BYTES = 8


class SplitAssigner:
    """Assigns texts to splits in proportion to `weights`.

    >>> SplitAssigner((1, 0, 0), seed=0).split_of(b"any text")
    'train'
    """

    def __init__(self, weights: Sequence[int], *, seed: int) -> None:
        self._key = seed.to_bytes(8, "little", signed=True)
        self.initial_state = initial_state(HASH_BYTES, self._key)  # for loops, whose digests go to `numbers_of`
        total = sum(weights)
        bounds = [(sum(weights[: number + 1]) << 8 * HASH_BYTES) // total for number in range(len(weights))]
        self._upper_bounds = np.array([bound for bound in bounds if bound < 1 << 8 * HASH_BYTES], np.uint64)

    def split_of(self, text: bytes) -> Split:
        """The split of a document with this text, in UTF-8."""
        return SPLITS[int(self.numbers_of(self.digests([text]))[0])]

    def digests(self, texts: Sequence[bytes]) -> np.ndarray:
        """The hashes of texts, uint64."""
        digests = [hashlib.blake2b(text, digest_size=HASH_BYTES, key=self._key).digest() for text in texts]
        return np.frombuffer(b"".join(digests), "<u8")

    def numbers_of(self, digests: np.ndarray) -> np.ndarray:
        """The number in `SPLITS` of the split of each text with these hashes."""
        return np.searchsorted(self._upper_bounds, digests, side="right")
