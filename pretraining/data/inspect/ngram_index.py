"""Texts by their runs of 8 tokens, so that all runs that a stretch of tokens has in common with them are found at once.

Runs of 8 are compared by hashes of 32 bits, of which a table of 2^22 entries tells most that are in no text; what is
left is compared token by token, so nothing is found that is not there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_TOKENS = 8  # a power of two; shorter runs are phrases that any two texts share
TABLE_BITS = 22  # 4 MB; with 160,000 runs in it, 4 % of all tokens are looked at twice
PAIRS_AT_ONCE = 1 << 20  # 50 MB of memory
MULTIPLIERS = {1: 0x9E3779B1, 2: 0x85EBCA6B, 4: 0xC2B2AE35}
SEPARATOR = -1  # between texts: no token's id


@dataclass(frozen=True, slots=True)
class Segments:
    """Tokens of documents: segment i has those from `begins[i]` up to `ends[i]`, all of one document."""

    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True, slots=True)
class CommonRuns:
    """Run i is `lengths[i]` tokens from `starts[i]` of text `texts[i]` on, and from `places[i]` of the segments on.

    `is_common` tells of each token of the texts, in the order of the index, whether any run has it, these or shorter.
    """

    texts: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    places: np.ndarray
    is_common: np.ndarray


class NgramIndex:
    """Texts, each a list of ids, to look for in segments; several threads may look."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        lengths = np.array([len(text) for text in texts], np.int64)
        self._begins = np.cumsum(lengths + 1) - lengths  # a separator stands before each, and one after the last
        self._ends = self._begins + lengths
        self._ids = np.full(int(lengths.sum()) + len(texts) + 1, SEPARATOR, np.int64)
        for begin, text in zip(self._begins, texts, strict=True):
            self._ids[begin : begin + len(text)] = text
        hashes = _hashes(self._ids)
        separators = np.flatnonzero(self._ids == SEPARATOR)
        distances = separators[np.searchsorted(separators, np.arange(len(hashes)))] - np.arange(len(hashes))
        places = np.flatnonzero(distances >= LEAST_TOKENS)
        self._places = places[np.argsort(hashes[places], kind="stable")]
        self._hashes = hashes[self._places]
        self._table = np.zeros(1 << TABLE_BITS, bool)
        self._table[_entries(self._hashes)] = True
        self.longest = int(lengths.max(initial=0))

    @property
    def is_empty(self) -> bool:
        """Whether no text has enough tokens."""
        return len(self._places) == 0

    @property
    def num_places(self) -> int:
        """The tokens of all texts, and what is between them."""
        return len(self._ids)

    def longest_runs(self, segments: Segments) -> CommonRuns:
        """Of each text that has a run in common with a segment the longest, the first of several."""
        found = [np.empty((3, 0), np.int64), *(self._runs(segments, *pairs) for pairs in self._pairs(segments))]
        in_texts, lengths, places = np.concatenate(found, axis=1)
        texts = np.searchsorted(self._begins, in_texts, side="right") - 1
        order = np.lexsort((places, -lengths, texts))
        best = order[np.diff(texts[order], prepend=-1) != 0]
        starts = in_texts - self._begins[texts]
        return CommonRuns(texts[best], starts[best], lengths[best], places[best], self._marked(in_texts, lengths))

    def counts(self, is_common: np.ndarray) -> list[int]:
        """How many tokens of each text are marked."""
        return [int(is_common[begin:end].sum()) for begin, end in zip(self._begins, self._ends, strict=True)]

    def _marked(self, in_texts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Which places of the texts these runs have."""
        num_open = np.zeros(len(self._ids), np.int64)
        np.add.at(num_open, in_texts, 1)
        np.add.at(num_open, in_texts + lengths, -1)
        return np.cumsum(num_open) > 0

    def _pairs(self, segments: Segments) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places in the segments and in the texts that have the same hash, some at a time."""
        hashes = _hashes(segments.ids)
        places = np.flatnonzero(self._table[_entries(hashes)])
        first = np.searchsorted(self._hashes, hashes[places])
        counts = np.searchsorted(self._hashes, hashes[places], side="right") - first
        ends = np.cumsum(counts)
        begin = 0
        while begin < len(places):
            done = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, done + PAIRS_AT_ONCE, side="right")))
            some = counts[begin:end]
            ranks = np.arange(int(some.sum())) - np.repeat(np.cumsum(some) - some, some)
            yield np.repeat(places[begin:end], some), self._places[np.repeat(first[begin:end], some) + ranks]
            begin = end

    def _runs(self, segments: Segments, places: np.ndarray, in_texts: np.ndarray) -> np.ndarray:
        """Where in the texts the runs of these pairs begin, their lengths, and where in the segments: [3, runs]."""
        owners = np.searchsorted(segments.begins, places, side="right") - 1
        begins, ends = segments.begins[owners], segments.ends[owners]
        goes_on = (places > begins) & (segments.ids[places - 1] == self._ids[in_texts - 1])
        places, in_texts, ends = places[~goes_on], in_texts[~goes_on], ends[~goes_on]
        lengths = np.zeros(len(places), np.int64)
        active = np.arange(len(places))
        for length in range(self.longest + 1):
            active = active[places[active] + length < ends[active]]
            active = active[segments.ids[places[active] + length] == self._ids[in_texts[active] + length]]
            if not len(active):
                break
            lengths[active] = length + 1
        kept = np.flatnonzero(lengths >= LEAST_TOKENS)
        return np.stack((in_texts[kept], lengths[kept], places[kept]))


def _hashes(ids: np.ndarray) -> np.ndarray:
    """Of each run of 8 ids its hash, uint32 of shape [ids - 7]."""
    hashes = ids.astype(np.uint32)
    for distance, multiplier in MULTIPLIERS.items():
        hashes = hashes[:-distance] * np.uint32(multiplier) + hashes[distance:]
    return hashes


def _entries(hashes: np.ndarray) -> np.ndarray:
    """Their places in the table: the high bits, to which all bits of all ids lead."""
    return (hashes * np.uint32(0x2C1B3C6D)) >> np.uint32(32 - TABLE_BITS)
