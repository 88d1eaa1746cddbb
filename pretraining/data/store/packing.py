"""Pack encoded documents into token blocks of one length.

`concat`: documents follow one another in input order, and the stream is cut into blocks; only its tail fills no block.
`best_fit`: documents of a window are placed whole where they fit best, longest first (best-fit decreasing; Ding et
al., arXiv 2404.10830); only those longer than a block are cut, and what is left of a block is padded.
Each block knows where in it a document begins, which one it is, and how many of its tokens stand before the piece.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

Packing = Literal["concat", "best_fit", "alone"]  # the last of finetune.py: a block for each conversation
# Documents that best fit chooses from: 1,024 blocks, fewer where they are longer than 4,096 tokens.
WINDOW_BLOCKS = 1024
WINDOW_TOKENS = 1 << 22
LEAST_WINDOW_BLOCKS = 8
WELL_FILLED = 0.98  # a block of the window with less in it may wait for the next window
WAITING_SHARE = 8  # one block of 8 at most; otherwise documents that never fill a block would gather without end


@dataclass(frozen=True, slots=True)
class DocumentSegments:
    """Parts of documents, in order: piece i has `lengths[i]` of `ids`, and `offsets[i]` tokens of it came before."""

    document_ids: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens of all pieces."""
        return len(self.ids)

    def take(self, numbers: Sequence[int] | np.ndarray) -> "DocumentSegments":
        """The pieces of these numbers, in their order."""
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
    """All pieces, one after the other."""
    columns = [[getattr(p, name) for p in pieces] for name in ("document_ids", "offsets", "lengths", "ids")]
    return DocumentSegments(*(np.concatenate(column) for column in columns))


def empty_segments(dtype: str) -> DocumentSegments:
    """Nothing, with ids of type `dtype`."""
    none = np.empty(0, np.int64)
    return DocumentSegments(none, none, none, np.empty(0, dtype))


@dataclass(frozen=True, slots=True)
class Blocks:
    """Token blocks: `input_ids` of shape [blocks, block_length], and the pieces in each.

    Piece i of the whole begins in its block at `document_starts[i]`; block b has the pieces from `piece_bounds[b]` to
    `piece_bounds[b + 1]`. The last `num_padding_tokens[b]` tokens of block b belong to no document.
    """

    input_ids: np.ndarray
    piece_bounds: np.ndarray
    document_starts: np.ndarray
    document_ids: np.ndarray
    document_offsets: np.ndarray
    num_padding_tokens: np.ndarray


class Packer(Protocol):
    """Packs the documents of one split; `carried` is all that was added and stands in no block yet."""

    carried: DocumentSegments

    def add(self, pieces: DocumentSegments) -> Blocks:
        """Append documents; the blocks they complete."""
        ...

    def flush(self) -> Blocks:
        """The blocks that can be made of what is carried, at the end of all documents."""
        ...


class ConcatPacker:
    """Concatenates and cuts.

    >>> packer = ConcatPacker(block_length=3, dtype="uint16")
    >>> ids = np.array([5, 6, 7, 8, 2, 9, 2], dtype="uint16")
    >>> blocks = packer.add(Pieces(np.array([0, 1]), np.array([0, 0]), np.array([5, 2]), ids))
    >>> blocks.input_ids.tolist(), blocks.document_ids.tolist(), blocks.document_offsets.tolist()
    ([[5, 6, 7], [8, 2, 9]], [0, 0, 1], [0, 3, 0])
    >>> packer.carried.ids.tolist(), packer.carried.offsets.tolist()
    ([2], [1])
    """

    def __init__(self, *, block_length: int, dtype: str) -> None:
        self._block_length = block_length
        self.carried = empty_segments(dtype)

    def add(self, pieces: DocumentSegments) -> Blocks:
        """Append documents; the blocks they complete."""
        stream = join_pieces([self.carried, pieces])
        num_blocks = stream.num_tokens // self._block_length
        num_packed = num_blocks * self._block_length
        cut = _cut_at_blocks(stream, self._block_length)
        starts = np.cumsum(cut.lengths) - cut.lengths
        num_pieces = int(np.searchsorted(starts, num_packed))
        self.carried = DocumentSegments(
            cut.document_ids[num_pieces:], cut.offsets[num_pieces:], cut.lengths[num_pieces:], stream.ids[num_packed:]
        )
        return Blocks(
            input_ids=stream.ids[:num_packed].reshape(num_blocks, self._block_length),
            piece_bounds=np.searchsorted(starts, np.arange(num_blocks + 1) * self._block_length),
            document_starts=starts[:num_pieces] % self._block_length,
            document_ids=cut.document_ids[:num_pieces],
            document_offsets=cut.offsets[:num_pieces],
            num_padding_tokens=np.zeros(num_blocks, np.int64),
        )

    def flush(self) -> Blocks:
        """No block: what is carried fills none, it is the tail."""
        return self.add(empty_segments(str(self.carried.ids.dtype)))


def _cut_at_blocks(stream: DocumentSegments, block_length: int) -> DocumentSegments:
    """The same tokens, with each piece cut where a block of the stream ends."""
    begins = np.cumsum(stream.lengths) - stream.lengths
    starts = np.union1d(begins, np.arange(0, stream.num_tokens, block_length))
    owner = np.searchsorted(begins, starts, side="right") - 1
    lengths = np.diff(np.append(starts, stream.num_tokens))
    return DocumentSegments(
        stream.document_ids[owner], stream.offsets[owner] + starts - begins[owner], lengths, stream.ids
    )


class BestFitPacker:
    """Places the documents of a window, longest first, each into the block with the least room that holds it."""

    def __init__(self, *, block_length: int, dtype: str, padding_id: int) -> None:
        self._block_length = block_length
        self._padding_id = padding_id
        self.carried = empty_segments(dtype)

    def add(self, pieces: DocumentSegments) -> Blocks:
        """Append documents; blocks as soon as the window is full."""
        self.carried = join_pieces([self.carried, pieces])
        largest = min(WINDOW_TOKENS, WINDOW_BLOCKS * self._block_length)
        window_tokens = max(largest, LEAST_WINDOW_BLOCKS * self._block_length)
        if self.carried.num_tokens < window_tokens:
            return self._blocks(self.carried, [])
        return self._pack(max_waiting=window_tokens // self._block_length // WAITING_SHARE)

    def flush(self) -> Blocks:
        """All that is carried, the last blocks padded."""
        return self._pack(max_waiting=0)

    def _pack(self, *, max_waiting: int) -> Blocks:
        window = _cut_long(self.carried, self._block_length)
        bins = best_fit_decreasing(window.lengths.tolist(), self._block_length)
        filled = [int(window.lengths[numbers].sum()) for numbers in bins]
        emptiest = sorted(range(len(bins)), key=lambda b: (filled[b], b))[:max_waiting]
        waiting = {b for b in emptiest if filled[b] < WELL_FILLED * self._block_length}
        self.carried = window.take(sorted(number for b in waiting for number in bins[b]))
        return self._blocks(window, [numbers for b, numbers in enumerate(bins) if b not in waiting])

    def _blocks(self, window: DocumentSegments, bins: list[list[int]]) -> Blocks:
        packed = window.take([number for numbers in bins for number in numbers])
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
    """The same tokens, with each piece that is longer than a block cut into blocks and a rest."""
    num_parts = -(-pieces.lengths // block_length)
    owner = np.repeat(np.arange(len(pieces.lengths)), num_parts)
    part = np.arange(len(owner)) - np.repeat(np.cumsum(num_parts) - num_parts, num_parts)
    before = part * block_length
    lengths = np.minimum(pieces.lengths[owner] - before, block_length)
    return DocumentSegments(pieces.document_ids[owner], pieces.offsets[owner] + before, lengths, pieces.ids)


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the pieces in each bin; the order of pieces and bins depends on `lengths` alone.

    >>> best_fit_decreasing([3, 5, 2, 4], capacity=7)
    [[1, 2], [3, 0]]
    """
    bins: list[list[int]] = []
    bins_with_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # sorted
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        length = lengths[number]
        place = bisect.bisect_left(rooms, length)
        if place == len(rooms):
            chosen, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[place]
            chosen = bins_with_room[room].pop()
            if not bins_with_room[room]:
                del bins_with_room[room], rooms[place]
        bins[chosen].append(number)
        left = room - length
        if left:
            if left not in bins_with_room:
                bisect.insort(rooms, left)
            bins_with_room.setdefault(left, []).append(chosen)
    return bins


def make_packer(packing: Packing, *, block_length: int, dtype: str, padding_id: int) -> Packer:
    """The packer that --packing names."""
    if packing == "best_fit":
        return BestFitPacker(block_length=block_length, dtype=dtype, padding_id=padding_id)
    return ConcatPacker(block_length=block_length, dtype=dtype)
