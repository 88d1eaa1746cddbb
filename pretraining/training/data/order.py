"""Shuffling: an order of all blocks that depends on the data and the seed alone.

Position p of a run is always the same block, whatever the number of processes, micro batches and workers, so progress
is one number. Positions are computed and not stored, so 500 million blocks need no memory and no start-up time.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pretraining.data.mixture import Mixture
from pretraining.errors import UserError

WINDOW = 1000  # any 1,000 consecutive blocks have each source in exactly its proportion
NUM_ROUNDS = 6


@dataclass(frozen=True)
class BlockOrder:
    """The endless order of the blocks of one or more sources.

    `num_blocks` counts the blocks of each source, `blocks_per_window` those among every 1,000 of the order. Blocks are
    numbered consecutively, the first source's first. Each epoch over a source has each of its blocks once, in another
    order.

    An order of a later phase begins at position `first`, where `num_read` blocks of each source were read before, so
    that each continues where it stopped. Its blocks are numbered from `first_ids` on, and `keys` select the
    permutations, which a source keeps through all phases. Unset, they are those of an order that is the only one.
    """

    num_blocks: tuple[int, ...]
    blocks_per_window: tuple[int, ...]
    seed: int
    first: int = 0
    num_read: tuple[int, ...] = ()
    first_ids: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()

    def block_ids(self, positions: np.ndarray) -> np.ndarray:
        """Return the blocks at `positions`; both int64 of shape [n]."""
        sources, places = self.source_positions(positions)
        ids = np.empty(len(positions), np.int64)
        for source in np.unique(sources):
            size, key = self.num_blocks[source], self.keys[source] if self.keys else int(source)
            first_id = self.first_ids[source] if self.first_ids else sum(self.num_blocks[:source])
            epochs = places // size
            for epoch in np.unique(epochs[sources == source]):
                chosen = (sources == source) & (epochs == epoch)
                ids[chosen] = first_id + permute(places[chosen] % size, size, key=(self.seed, key, int(epoch)))
        return ids

    def source_positions(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each position, and the number of blocks of that source before it."""
        windows, slots = np.divmod(positions - self.first, WINDOW)
        sources = self._pattern[slots]
        counts = np.array(self.blocks_per_window, np.int64)
        num_read = np.array(self.num_read or [0] * len(counts), np.int64)
        return sources, num_read[sources] + windows * counts[sources] + self._num_before[slots]

    def num_consumed(self, num_positions: int) -> list[int]:
        """Count the blocks of each source from position `first` on among the first `num_positions`."""
        windows, slots = divmod(num_positions - self.first, WINDOW)
        rest = np.bincount(self._pattern[:slots], minlength=len(self.num_blocks))
        return [windows * count + int(more) for count, more in zip(self.blocks_per_window, rest, strict=True)]

    @cached_property
    def _pattern(self) -> np.ndarray:
        """The source of each slot of a window; the slots of a source are evenly spaced."""
        times = np.concatenate([(np.arange(count) + 0.5) / count for count in self.blocks_per_window])
        sources = np.repeat(np.arange(len(self.blocks_per_window)), self.blocks_per_window)
        return sources[np.argsort(times, kind="stable")]

    @cached_property
    def _num_before(self) -> np.ndarray:
        """The number of slots of the same source before each slot of a window."""
        before = np.empty(WINDOW, np.int64)
        for source, count in enumerate(self.blocks_per_window):
            before[self._pattern == source] = np.arange(count)
        return before


def make_order(mixture: Mixture, *, seed: int) -> BlockOrder:
    """Order the training blocks of all stores.

    Raises:
        UserError: when a share is smaller than one block in 1,000.
    """
    shares = apportion([part.weight for part in mixture.parts])
    for part, share in zip(mixture.parts, shares, strict=True):
        if share == 0:
            raise UserError(
                f"--dataset {part.source}: its share of {part.weight:g} is less than one block of {WINDOW:,}; use a "
                "larger share, or remove it"
            )
    return BlockOrder(tuple(mixture.num_blocks("train")), tuple(shares), seed)


def apportion(weights: Sequence[float]) -> list[int]:
    """Divide 1,000 blocks by the weights, by largest remainder.

    >>> apportion([0.7, 0.3]), apportion([1, 1, 1])
    ([700, 300], [334, 333, 333])
    """
    exact = [weight / sum(weights) * WINDOW for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda number: counts[number] - exact[number])
    for number in by_remainder[: WINDOW - sum(counts)]:
        counts[number] += 1
    return counts


def permute(places: np.ndarray, size: int, *, key: tuple[int, ...]) -> np.ndarray:
    """Map `places`, int64 of shape [n], by a pseudorandom permutation of range(size) that `key` selects.

    A Feistel network permutes the numbers of an even number of bits, whatever its round function (Luby and Rackoff,
    SIAM J. Comput. 17, 1988); numbers of `size` or more are mapped again until they are smaller (cycle walking, Black
    and Rogaway, CT-RSA 2002), at most four times on average.
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
        left, right = right, left ^ (_splitmix64(right + round_key) & mask)
    return (left << half_bits) | right


def _splitmix64(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014); multiplication wraps around at 64 bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
