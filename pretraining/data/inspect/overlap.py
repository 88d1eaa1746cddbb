"""How much of some texts was copied from training documents, and the longest run of tokens that each has from them.

The texts are indexed by their runs of 8 tokens, so that all common runs are found in one scan of the split. Runs of 8
are compared by 32-bit hashes, most of which a table of 2^22 entries rules out; the rest is compared token by token, so
no match is false.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pretraining.cli.progress import Progress
from pretraining.data.encode.splits import Split
from pretraining.data.inspect.provenance import BlockProvenance
from pretraining.data.inspect.search import DocumentTokens, scan_documents

MIN_TOKENS = 8  # a power of two; shorter runs are phrases that any two texts share
TABLE_BITS = 22  # 4 MB; with 160,000 runs in it, 4 % of all tokens are compared
PAIRS_AT_ONCE = 1 << 20  # 50 MB of memory
MULTIPLIERS = {1: 0x9E3779B1, 2: 0x85EBCA6B, 4: 0xC2B2AE35}
SEPARATOR = -1  # between texts: no token has this id


@dataclass(frozen=True, slots=True)
class VerbatimSpan:
    """`num_tokens` tokens from `start` of a text on, equal to those from `document_token` of a document on."""

    start: int
    num_tokens: int
    document_id: int
    document_token: int


@dataclass(frozen=True, slots=True)
class CopiedText:
    """How many tokens of a text are in runs of 8 or more that a document has too, and the longest of these runs."""

    num_tokens: int
    longest: VerbatimSpan | None


@dataclass(frozen=True, slots=True)
class CommonRuns:
    """Of each text that has a common run the longest: `lengths[i]` tokens from `starts[i]` of text `texts[i]` on.

    `places[i]` is where it begins in the documents. `is_common` marks every token of the index that is in any run.
    """

    texts: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    places: np.ndarray
    is_common: np.ndarray


class NgramIndex:
    """Texts, each a list of ids, to find in documents; several threads may search."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        lengths = np.array([len(text) for text in texts], np.int64)
        self._begins = np.cumsum(lengths + 1) - lengths  # a separator before each text, and one after the last
        self._ends = self._begins + lengths
        self._ids = np.full(int(lengths.sum()) + len(texts) + 1, SEPARATOR, np.int64)
        for begin, text in zip(self._begins, texts, strict=True):
            self._ids[begin : begin + len(text)] = text
        hashes = _hashes(self._ids)
        separators = np.flatnonzero(self._ids == SEPARATOR)
        distances = separators[np.searchsorted(separators, np.arange(len(hashes)))] - np.arange(len(hashes))
        places = np.flatnonzero(distances >= MIN_TOKENS)
        self._places = places[np.argsort(hashes[places], kind="stable")]
        self._hashes = hashes[self._places]
        self._table = np.zeros(1 << TABLE_BITS, bool)
        self._table[_entries(self._hashes)] = True
        self.longest = int(lengths.max(initial=0))
        self.num_places = len(self._ids)  # the tokens of all texts and the separators

    def longest_runs(self, documents: DocumentTokens) -> CommonRuns:
        """Of each text that has a run in common with a document the longest, the first of several."""
        found = [np.empty((3, 0), np.int64), *(self._runs(documents, *pairs) for pairs in self._pairs(documents))]
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
        """Mark the tokens of these runs: bool of shape [num_places]."""
        num_open = np.zeros(len(self._ids), np.int64)
        np.add.at(num_open, in_texts, 1)
        np.add.at(num_open, in_texts + lengths, -1)
        return np.cumsum(num_open) > 0

    def _pairs(self, documents: DocumentTokens) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Places in the documents and in the texts with the same hash, PAIRS_AT_ONCE at a time."""
        hashes = _hashes(documents.ids)
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

    def _runs(self, documents: DocumentTokens, places: np.ndarray, in_texts: np.ndarray) -> np.ndarray:
        """Begins in the texts, lengths and begins in the documents of the runs at these pairs: [3, runs]."""
        owners = np.searchsorted(documents.begins, places, side="right") - 1
        begins, ends = documents.begins[owners], documents.ends[owners]
        starts_earlier = (places > begins) & (documents.ids[places - 1] == self._ids[in_texts - 1])
        places, in_texts, ends = places[~starts_earlier], in_texts[~starts_earlier], ends[~starts_earlier]
        lengths = np.zeros(len(places), np.int64)
        active = np.arange(len(places))
        for length in range(self.longest + 1):
            active = active[places[active] + length < ends[active]]
            active = active[documents.ids[places[active] + length] == self._ids[in_texts[active] + length]]
            if not len(active):
                break
            lengths[active] = length + 1
        kept = np.flatnonzero(lengths >= MIN_TOKENS)
        return np.stack((in_texts[kept], lengths[kept], places[kept]))


def _hashes(ids: np.ndarray) -> np.ndarray:
    """The hash of each run of 8 ids: uint32 of shape [ids - 7]."""
    hashes = ids.astype(np.uint32)
    for distance, multiplier in MULTIPLIERS.items():
        hashes = hashes[:-distance] * np.uint32(multiplier) + hashes[distance:]
    return hashes


def _entries(hashes: np.ndarray) -> np.ndarray:
    """Indices into the table: the high bits, on which all bits of all ids have an effect."""
    return (hashes * np.uint32(0x2C1B3C6D)) >> np.uint32(32 - TABLE_BITS)


def find_copied_runs(
    tracer: BlockProvenance, texts: Sequence[Sequence[int]], *, split: Split, progress: Progress, num_workers: int
) -> list[CopiedText]:
    """What is copied of each text."""
    index = NgramIndex(texts)
    longest: list[VerbatimSpan | None] = [None] * len(texts)
    if index.longest < MIN_TOKENS:
        return [CopiedText(0, None) for _ in texts]
    is_common = np.zeros(index.num_places, bool)
    for results, num_bytes in scan_documents(tracer, split, index.longest_runs, num_workers=num_workers):
        for documents, runs in results:
            _keep_longest(longest, runs, documents)
            is_common |= runs.is_common
        progress.advance(num_bytes, f"{sum(run is not None for run in longest):,} texts with a copied run")
    return [CopiedText(*both) for both in zip(index.counts(is_common), longest, strict=True)]


def _keep_longest(longest: list[VerbatimSpan | None], runs: CommonRuns, documents: DocumentTokens) -> None:
    """Replace the runs of `longest` by longer ones."""
    owners = np.searchsorted(documents.begins, runs.places, side="right") - 1
    tokens = runs.places - documents.begins[owners]
    rows = zip(runs.texts, runs.starts, runs.lengths, documents.document_ids[owners], tokens, strict=True)
    for text, start, length, document_id, token in rows:
        earlier = longest[text]
        if earlier is None or length > earlier.num_tokens:
            longest[text] = VerbatimSpan(int(start), int(length), int(document_id), int(token))
