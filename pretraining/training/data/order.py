"""Which block stands where: an order of all blocks that depends on the data and the seed alone.

Position p of a run is always the same block, however many processes, micro batches or workers read it; how far a run
is, is one number. Nothing is stored: a block's place is computed, so 500 million blocks need no memory and no start-up.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

WINDOW = 1000  # any so many blocks in a row hold each source in exactly its proportion
NUM_ROUNDS = 6


@dataclass(frozen=True)
class BlockOrder:
    """The endless order of the blocks of one or more sources.

    `num_blocks` are those of each source and `blocks_per_window` how many of every 1,000 are its. Blocks are numbered
    through, the first source's first. Each pass over a source has each of its blocks once, in an order of its own.
    """

    num_blocks: tuple[int, ...]
    blocks_per_window: tuple[int, ...]
    seed: int

    def block_ids(self, positions: np.ndarray) -> np.ndarray:
        """The blocks at `positions`; both int64 of shape [n]."""
        sources, places = self.places(positions)
        ids = np.empty(len(positions), np.int64)
        for source in np.unique(sources):
            size, first_id = self.num_blocks[source], sum(self.num_blocks[:source])
            epochs = places // size
            for epoch in np.unique(epochs[sources == source]):
                chosen = (sources == source) & (epochs == epoch)
                ids[chosen] = first_id + permute(places[chosen] % size, size, key=(self.seed, int(source), int(epoch)))
        return ids

    def places(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each position, and how many blocks of that source come before it."""
        windows, slots = np.divmod(positions, WINDOW)
        sources = self._pattern[slots]
        counts = np.array(self.blocks_per_window, np.int64)
        return sources, windows * counts[sources] + self._num_before[slots]

    def num_consumed(self, num_positions: int) -> list[int]:
        """How many of the first `num_positions` blocks are of each source."""
        windows, slots = divmod(num_positions, WINDOW)
        rest = np.bincount(self._pattern[:slots], minlength=len(self.num_blocks))
        return [windows * count + int(more) for count, more in zip(self.blocks_per_window, rest, strict=True)]

    @cached_property
    def _pattern(self) -> np.ndarray:
        """The source of each slot of a window: those of a source stand at even distances."""
        moments = np.concatenate([(np.arange(count) + 0.5) / count for count in self.blocks_per_window])
        owners = np.repeat(np.arange(len(self.blocks_per_window)), self.blocks_per_window)
        return owners[np.argsort(moments, kind="stable")]

    @cached_property
    def _num_before(self) -> np.ndarray:
        """How many slots of the same source stand before each slot of a window."""
        before = np.empty(WINDOW, np.int64)
        for source, count in enumerate(self.blocks_per_window):
            before[self._pattern == source] = np.arange(count)
        return before


def apportion(weights: Sequence[float]) -> list[int]:
    """How many of 1,000 blocks each weight is, by largest remainder; they add up to 1,000.

    >>> share_window([0.7, 0.3]), share_window([1, 1, 1])
    ([700, 300], [334, 333, 333])
    """
    exact = [weight / sum(weights) * WINDOW for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda number: counts[number] - exact[number])
    for number in by_remainder[: WINDOW - sum(counts)]:
        counts[number] += 1
    return counts


def permute(places: np.ndarray, size: int, *, key: tuple[int, ...]) -> np.ndarray:
    """Where a shuffle of `size` things, chosen by `key`, puts those at `places`; int64 of shape [n], each once.

    A Feistel network permutes the numbers of an even number of bits, whatever its round function (Luby and Rackoff,
    SIAM J. Comput. 17, 1988); numbers that fall outside `size` go through it again until they fall inside (cycle
    walking, Black and Rogaway, CT-RSA 2002), at most four times on average.
    """
    half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * NUM_ROUNDS).digest()
    round_keys = np.frombuffer(digest, "<u8")
    values = places.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = _feistel(values[outside], half_bits, round_keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half_bits: np.uint64, round_keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mixed(right + round_key) & mask)
    return (left << half_bits) | right


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014); products wrap around at 64 bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
