"""Scan the documents of a split, and find the blocks that contain a text.

Every token is read once, a row group at a time. A document that was cut at the end of a block is joined again around
each cut, wherever in the split its next piece is, so that matches are found across blocks. A text is found whatever
its ids are there (after a space, inside a word): ids become bytes (token_bytes.py), and bytes are searched.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from pretraining.cli.progress import Progress
from pretraining.data.encode.encoding import bounded_parallel_map
from pretraining.data.encode.splits import Split
from pretraining.data.inspect.provenance import BlockProvenance, Piece, PieceTable
from pretraining.data.store.shards import Shard
from pretraining.data.tokenize.token_bytes import NO_TEXT, text_of

EXCERPT_BYTES = 120

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Segments:
    """Runs of tokens of documents: segment i is `ids[begins[i]:ends[i]]`, from token `offsets[i]` of its document on.

    A segment is one piece, or the surroundings of a cut, with the last token before the cut at `cuts[i] - 1`.
    """

    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    document_ids: np.ndarray
    offsets: np.ndarray
    pieces_of: Callable[[int], Sequence[Piece]]
    cuts: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class _RowGroup:
    shard: Shard
    number: int
    first_block: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Tail:
    """The last tokens of an unfinished document, and the pieces that have them."""

    ids: np.ndarray
    pieces: list[Piece]


class SplitScan(Generic[T]):
    """Calls `search` on all pieces of a split, and on `reach` tokens before and after each cut.

    Raises:
        UserError: when a shard is missing or damaged.
    """

    def __init__(
        self, tracer: BlockProvenance, split: Split, search: Callable[[Segments], T], *, reach: int, num_workers: int
    ) -> None:
        self._tracer = tracer
        self._split: Split = split
        self._search = search
        self._reach = reach
        self._num_workers = num_workers
        self._eos_token_id = tracer.manifest.origin.token_rules.eos_token_id
        self._tails: dict[int, _Tail] = {}  # by document

    def __iter__(self) -> Iterator[tuple[list[tuple[Segments, T]], int]]:
        """What was found in each row group and the cuts that end there, in order, and the group's share of the bytes.

        Threads read and search.
        """
        most = self._num_workers + 1
        for group, pieces, found in bounded_parallel_map(
            self._searched, self._row_groups(), num_workers=self._num_workers, cost=lambda _: 1, max_cost=most
        ):
            results = [(pieces, found)]
            cuts = self._join_cuts(pieces)
            if cuts is not None:
                results.append((cuts, self._search(cuts)))
            yield results, group.num_bytes

    @property
    def unfinished_pieces(self) -> set[Piece]:
        """Pieces with which a later match may begin."""
        return {piece for tail in self._tails.values() for piece in tail.pieces}

    def _row_groups(self) -> Iterator[_RowGroup]:
        first_block = 0
        for shard in self._tracer.manifest.splits[self._split].shards:
            metadata = self._tracer.open_shard(shard).metadata
            for number in range(metadata.num_row_groups):
                num_rows = metadata.row_group(number).num_rows
                yield _RowGroup(shard, number, first_block, shard.num_bytes * num_rows // shard.num_rows)
                first_block += num_rows

    def _searched(self, group: _RowGroup) -> tuple[_RowGroup, Segments, T]:
        rows = self._tracer.open_shard(group.shard).read_row_group(group.number, use_threads=False)
        length = self._tracer.manifest.origin.block_length
        table = PieceTable(rows, split=self._split, first_block=group.first_block, block_length=length)
        ids = np.from_dlpack(rows["input_ids"].combine_chunks().flatten())
        pieces = Segments(
            ids, table.begins, table.ends, table.document_ids, table.offsets, lambda index: [table.piece(index)]
        )
        return group, pieces, self._search(pieces)

    def _join_cuts(self, pieces: Segments) -> Segments | None:
        """The surroundings of each cut whose second side is in these pieces."""
        is_cut = pieces.ids[pieces.ends - 1] != self._eos_token_id
        ids, document_ids, offsets, cut_pieces, cuts = [], [], [], [], []
        for number in np.flatnonzero(is_cut | (pieces.offsets > 0)).tolist():
            document_id, offset = int(pieces.document_ids[number]), int(pieces.offsets[number])
            own = pieces.ids[pieces.begins[number] : pieces.ends[number]]
            (piece,) = pieces.pieces_of(number)
            before = self._tails.pop(document_id, _Tail(pieces.ids[:0], []))
            if before.pieces:
                last = before.pieces[-1]
                assert last.num_tokens_before + last.num_tokens == offset, f"document {document_id} is out of order"
                ids.append(np.concatenate([before.ids, own[: self._reach]]))
                document_ids.append(document_id)
                offsets.append(offset - len(before.ids))
                cut_pieces.append([*before.pieces, piece])
                cuts.append(len(before.ids))
            if is_cut[number]:
                tail = np.concatenate([before.ids, own[-self._reach :]])[-self._reach :]
                begin = offset + len(own) - len(tail)
                kept = [p for p in [*before.pieces, piece] if p.num_tokens_before + p.num_tokens > begin]
                self._tails[document_id] = _Tail(tail, kept or [piece])
        if not ids:
            return None
        ends = np.cumsum([len(one) for one in ids])
        begins = ends - [len(one) for one in ids]
        all_ids = np.concatenate(ids)
        places = begins + np.array(cuts)
        return Segments(
            all_ids, begins, ends, np.array(document_ids), np.array(offsets), cut_pieces.__getitem__, places
        )


@dataclass(frozen=True, slots=True)
class Hit:
    """A piece with the text or a part of it: the token where that begins, and the piece's text from there on."""

    piece: Piece
    position: int
    excerpt: str


class _TextSearch:
    """Finds `text` in segments; several threads may use it."""

    def __init__(self, tracer: BlockProvenance, text: str) -> None:
        self.wanted = text.encode("utf-8")
        origin = tracer.manifest.origin
        self._num_bos = 0 if origin.token_rules.bos_token_id is None else 1
        self._token_bytes = tracer.searchable_bytes

    def __call__(self, segments: Segments) -> list[Hit]:
        """The pieces with the text or a part of it: of each piece or cut the first match."""
        text = self._token_bytes.join(segments.ids)
        data = self._without_added_spaces(text.data, text.bounds, segments).tobytes()
        find = self._across_cuts if segments.cuts is not None else self._within_pieces
        matches = find(data, text.bounds, segments)
        return [hit for index, at in matches for hit in self._hits(data, text.bounds, segments, index, at)]

    def _without_added_spaces(self, data: np.ndarray, bounds: np.ndarray, segments: Segments) -> np.ndarray:
        """Hide the space that some encoders put before a document."""
        if not self._token_bytes.drops_first_space:
            return data
        first_tokens = segments.begins + self._num_bos - segments.offsets
        first_bytes = bounds[first_tokens[(segments.offsets <= self._num_bos) & (first_tokens < segments.ends)]]
        data = data.copy()
        data[first_bytes[data[first_bytes] == ord(" ")]] = NO_TEXT[0]
        return data

    def _within_pieces(self, data: bytes, bounds: np.ndarray, segments: Segments) -> Iterator[tuple[int, int]]:
        begins, ends = bounds[segments.begins], bounds[segments.ends]
        at = 0
        while (at := data.find(self.wanted, at)) >= 0:
            index = int(np.searchsorted(begins, at, side="right")) - 1
            if at + len(self.wanted) <= ends[index]:
                yield index, at
            at = int(begins[index + 1]) if index + 1 < len(begins) else len(data)

    def _across_cuts(self, data: bytes, bounds: np.ndarray, segments: Segments) -> Iterator[tuple[int, int]]:
        assert segments.cuts is not None
        reach = len(self.wanted) - 1
        for index, cut in enumerate(bounds[segments.cuts].tolist()):
            begin, end = int(bounds[segments.begins[index]]), int(bounds[segments.ends[index]])
            at = data.find(self.wanted, max(begin, cut - reach), min(end, cut + reach))
            if at >= 0:
                yield index, at

    def _hits(self, data: bytes, bounds: np.ndarray, segments: Segments, index: int, at: int) -> Iterator[Hit]:
        """A hit for each piece that has a part of the match at byte `at`."""
        first, last = np.searchsorted(bounds, [at, at + len(self.wanted) - 1], side="right") - 1
        for piece in segments.pieces_of(index):
            begin = int(segments.begins[index] + piece.num_tokens_before - segments.offsets[index])
            token = max(int(first), begin)
            if token <= last and token < begin + piece.num_tokens:
                byte = max(at, int(bounds[token]))
                end = int(bounds[min(begin + piece.num_tokens, int(segments.ends[index]))])
                yield Hit(piece, piece.start + token - begin, text_of(data[byte : min(byte + EXCERPT_BYTES, end)]))


def find_text(
    tracer: BlockProvenance, splits: Sequence[Split], text: str, *, progress: Progress, num_workers: int
) -> Iterator[Hit]:
    """All pieces in `splits` with `text` or a part of it, each once, as they are found.

    Raises:
        UserError: when text cannot be found by the tokenizer's bytes, or a shard is damaged.
    """
    search = _TextSearch(tracer, text)
    reach = max(len(search.wanted) - 1, EXCERPT_BYTES)  # in tokens, of a byte at least
    num_found = 0
    for split in splits:
        scan = SplitScan(tracer, split, search, reach=reach, num_workers=num_workers)
        reported: set[Piece] = set()
        for results, num_bytes in scan:
            hits: dict[Piece, Hit] = {}
            for hit in (hit for _, some in results for hit in some if hit.piece not in reported):
                if hit.piece not in hits or hit.position < hits[hit.piece].position:
                    hits[hit.piece] = hit
            reported = (reported | set(hits)) & scan.unfinished_pieces
            num_found += len(hits)
            progress.advance(num_bytes, f"found in {num_found:,} pieces")
            yield from sorted(hits.values(), key=lambda hit: (hit.piece.block, hit.piece.number))
