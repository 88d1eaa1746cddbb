"""Pack encoded documents into token blocks of one length.

`concat`: documents are concatenated in input order, and the stream is cut into blocks; its tail is in no block.
`best_fit`: documents of a window are placed uncut where they fit best, longest first (best-fit decreasing; Ding et
al., arXiv 2404.10830); only those longer than a block are cut, and the rest of a block is padded.
Each block records where in it a document begins, which one it is, and how many of its tokens are in earlier blocks.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pretraining.data.store.blocks import Blocks, no_blocks

Packing = Literal["concat", "best_fit", "alone"]  # the last one in finetune.py: a block for each conversation
TOKENS_PER_ROW_GROUP = 1 << 22
# The window of best_fit: 1,024 blocks, fewer if they are longer than 4,096 tokens.
WINDOW_BLOCKS = 1024
WINDOW_TOKENS = 1 << 22
MIN_WINDOW_BLOCKS = 8
MIN_FILL = 0.98  # a block of the window with less may wait for the next window
SEGMENT_COLUMNS = ("document_ids", "offsets", "lengths", "ids")
BLOCKS_PER_PENDING = 8  # at most one block of 8 waits; otherwise documents that fill no block would accumulate


@dataclass(frozen=True, slots=True)
class DocumentSegments:
    """Pieces of documents, in order: piece i has `lengths[i]` of `ids`, after `offsets[i]` tokens of its document."""

    document_ids: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens of all pieces."""
        return len(self.ids)

    def select(self, numbers: Sequence[int] | np.ndarray) -> "DocumentSegments":
        """The pieces of these numbers, in this order."""
        order = np.asarray(numbers, dtype=np.int64)
        starts = np.cumsum(self.lengths) - self.lengths
        ids = [
            self.ids[start : start + length] for start, length in zip(starts[order], self.lengths[order], strict=False)
        ]
        empty = self.ids[:0]
        return DocumentSegments(
            self.document_ids[order], self.offsets[order], self.lengths[order], np.concatenate([empty, *ids])
        )


def join_pieces(pieces: Sequence[DocumentSegments]) -> DocumentSegments:
    """Concatenate pieces."""
    columns = [[getattr(p, name) for p in pieces] for name in SEGMENT_COLUMNS]
    return DocumentSegments(*(np.concatenate(column) for column in columns))


def empty_segments(dtype: str) -> DocumentSegments:
    """No pieces, with ids of type `dtype`."""
    none = np.empty(0, np.int64)
    return DocumentSegments(none, none, none, np.empty(0, dtype))


class ConcatPacker:
    """Concatenates and cuts, as many blocks at once as a row group has, so that ids are copied once.

    >>> packer = ConcatPacker(block_length=3, dtype="uint16")
    >>> ids = np.array([5, 6, 7, 8, 2, 9, 2], dtype="uint16")
    >>> packer.add(DocumentSegments(np.array([0, 1]), np.array([0, 0]), np.array([5, 2]), ids)).input_ids.shape
    (0, 3)
    >>> blocks = packer.complete()
    >>> blocks.input_ids.tolist(), blocks.document_ids.tolist(), blocks.document_offsets.tolist()
    ([[5, 6, 7], [8, 2, 9]], [0, 0, 1], [0, 3, 0])
    >>> packer.pending.ids.tolist(), packer.pending.offsets.tolist()
    ([2], [1])
    """

    def __init__(self, *, block_length: int, dtype: str) -> None:
        self._block_length = block_length
        self._parts = [empty_segments(dtype)]
        self._num_tokens = 0

    @property
    def pending(self) -> DocumentSegments:
        """What is in no block yet."""
        self._parts = [join_pieces(self._parts)]
        return self._parts[0]

    @pending.setter
    def pending(self, pieces: DocumentSegments) -> None:
        self._parts, self._num_tokens = [pieces], pieces.num_tokens

    def add(self, pieces: DocumentSegments) -> Blocks:
        """Append documents; the blocks of full row groups."""
        self._parts.append(pieces)
        self._num_tokens += pieces.num_tokens
        num_blocks = self._num_tokens // self._block_length
        return self._pack(num_blocks - num_blocks % max(1, TOKENS_PER_ROW_GROUP // self._block_length))

    def complete(self) -> Blocks:
        """The blocks for which there are ids."""
        return self._pack(self._num_tokens // self._block_length)

    def flush(self) -> Blocks:
        """The same: the rest is the tail."""
        return self.complete()

    def _pack(self, num_blocks: int) -> Blocks:
        if not num_blocks:
            return no_blocks(self._block_length, str(self._parts[0].ids.dtype))
        stream = self.pending
        num_packed = num_blocks * self._block_length
        cut = _cut_at_blocks(stream, self._block_length)
        starts = np.cumsum(cut.lengths) - cut.lengths
        num_pieces = int(np.searchsorted(starts, num_packed))
        rest = stream.ids[num_packed:].copy()  # a view would keep the ids of all blocks in memory
        self.pending = DocumentSegments(
            cut.document_ids[num_pieces:], cut.offsets[num_pieces:], cut.lengths[num_pieces:], rest
        )
        return Blocks(
            input_ids=stream.ids[:num_packed].reshape(num_blocks, self._block_length),
            piece_bounds=np.searchsorted(starts, np.arange(num_blocks + 1) * self._block_length),
            document_starts=starts[:num_pieces] % self._block_length,
            document_ids=cut.document_ids[:num_pieces],
            document_offsets=cut.offsets[:num_pieces],
            num_padding_tokens=np.zeros(num_blocks, np.int64),
        )


def _cut_at_blocks(stream: DocumentSegments, block_length: int) -> DocumentSegments:
    """Cut each piece where a block of the stream ends."""
    begins = np.cumsum(stream.lengths) - stream.lengths
    places = np.sort(np.concatenate([begins, np.arange(0, stream.num_tokens, block_length)]), kind="stable")
    starts = places[np.diff(places, prepend=-1) > 0]  # each once; np.union1d would import numpy.ma, 25 ms
    owner = np.searchsorted(begins, starts, side="right") - 1
    lengths = np.diff(np.append(starts, stream.num_tokens))
    return DocumentSegments(
        stream.document_ids[owner], stream.offsets[owner] + starts - begins[owner], lengths, stream.ids
    )


class BestFitPacker:
    """Places the documents of a window, longest first, each into the block with the least sufficient free space.

    `pending` is in no block yet.
    """

    def __init__(self, *, block_length: int, dtype: str, padding_id: int) -> None:
        self._block_length = block_length
        self._padding_id = padding_id
        self.pending = empty_segments(dtype)

    def add(self, pieces: DocumentSegments) -> Blocks:
        """Append documents; the blocks of a full window."""
        self.pending = join_pieces([self.pending, pieces])
        largest = min(WINDOW_TOKENS, WINDOW_BLOCKS * self._block_length)
        window_tokens = max(largest, MIN_WINDOW_BLOCKS * self._block_length)
        if self.pending.num_tokens < window_tokens:
            return self.complete()
        return self._pack(max_pending=window_tokens // self._block_length // BLOCKS_PER_PENDING)

    def complete(self) -> Blocks:
        """None, as a window is packed when it is full."""
        return no_blocks(self._block_length, str(self.pending.ids.dtype))

    def flush(self) -> Blocks:
        """The blocks of the rest, padded."""
        return self._pack(max_pending=0)

    def _pack(self, *, max_pending: int) -> Blocks:
        window = _cut_long(self.pending, self._block_length)
        bins = best_fit_decreasing(window.lengths.tolist(), self._block_length)
        filled = [int(window.lengths[numbers].sum()) for numbers in bins]
        emptiest = sorted(range(len(bins)), key=lambda b: (filled[b], b))[:max_pending]
        pending = {b for b in emptiest if filled[b] < MIN_FILL * self._block_length}
        self.pending = window.select(sorted(number for b in pending for number in bins[b]))
        return self._blocks(window, [numbers for b, numbers in enumerate(bins) if b not in pending])

    def _blocks(self, window: DocumentSegments, bins: list[list[int]]) -> Blocks:
        packed = window.select([number for numbers in bins for number in numbers])
        bounds = np.cumsum([0, *(len(numbers) for numbers in bins)])
        ends = np.concatenate([[0], np.cumsum(packed.lengths)])
        num_tokens = np.diff(ends[bounds])
        input_ids = np.full((len(bins), self._block_length), self._padding_id, dtype=window.ids.dtype)
        input_ids[np.arange(self._block_length) < num_tokens[:, None]] = packed.ids
        block_begins = np.repeat(ends[bounds[:-1]], np.diff(bounds))
        return Blocks(
            input_ids=input_ids,
            piece_bounds=bounds,
            document_starts=ends[:-1] - block_begins,
            document_ids=packed.document_ids,
            document_offsets=packed.offsets,
            num_padding_tokens=self._block_length - num_tokens,
        )


def _cut_long(pieces: DocumentSegments, block_length: int) -> DocumentSegments:
    """Cut each piece that is longer than a block into blocks and a rest."""
    num_parts = -(-pieces.lengths // block_length)
    owner = np.repeat(np.arange(len(pieces.lengths)), num_parts)
    part = np.arange(len(owner)) - np.repeat(np.cumsum(num_parts) - num_parts, num_parts)
    before = part * block_length
    lengths = np.minimum(pieces.lengths[owner] - before, block_length)
    return DocumentSegments(pieces.document_ids[owner], pieces.offsets[owner] + before, lengths, pieces.ids)


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the pieces in each bin; the result depends only on `lengths`.

    >>> best_fit_decreasing([3, 5, 2, 4], capacity=7)
    [[1, 2], [3, 0]]
    """
    bins: list[list[int]] = []
    bins_by_space: dict[int, list[int]] = {}
    spaces: list[int] = []  # sorted
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        length = lengths[number]
        place = bisect.bisect_left(spaces, length)
        if place == len(spaces):
            chosen, space = len(bins), capacity
            bins.append([])
        else:
            space = spaces[place]
            chosen = bins_by_space[space].pop()
            if not bins_by_space[space]:
                del bins_by_space[space], spaces[place]
        bins[chosen].append(number)
        left = space - length
        if left:
            if left not in bins_by_space:
                bisect.insort(spaces, left)
            bins_by_space.setdefault(left, []).append(chosen)
    return bins


Packer = ConcatPacker | BestFitPacker


def make_packer(packing: Packing, *, block_length: int, dtype: str, padding_id: int) -> Packer:
    """The packer of --packing."""
    if packing == "best_fit":
        return BestFitPacker(block_length=block_length, dtype=dtype, padding_id=padding_id)
    return ConcatPacker(block_length=block_length, dtype=dtype)
