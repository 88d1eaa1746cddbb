"""Find the blocks that contain a text, whatever its ids are there: after a space, in mid-word, cut by a block's end.

The ids of every block become bytes (token_bytes.py), and the text's own bytes are looked for in these, so nothing
can be missed. A text may begin in one piece of a document and end in the next, wherever in the split that stands: of
each piece that is cut off, the last bytes wait for the piece that goes on.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from pretraining.cli.progress import Progress
from pretraining.data.encode.splits import Split
from pretraining.data.inspect.provenance import BlockProvenance, Piece, PieceTable
from pretraining.data.store.shards import Shard
from pretraining.data.tokenize.token_bytes import NO_TEXT, TokenBytes, TokenText, text_of

EXCERPT_BYTES = 120


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a shard of `split`: its number, its first block, and its share of the shard's bytes."""

    split: Split
    shard: Shard
    number: int
    first_block: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A piece that has the text or a part of it: the token where that begins, and how the piece goes on from there."""

    piece: Piece
    position: int
    excerpt: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """The blocks of one row group: their bytes, and their pieces; piece i has those from `bounds[i]` on."""

    data: bytes
    bounds: np.ndarray
    text: TokenText
    pieces: PieceTable

    def hit(self, index: int, byte: int) -> Hit:
        """Piece `index` with the text at `byte`."""
        piece = self.pieces.piece(index)
        token = int(np.searchsorted(self.text.bounds, byte, side="right")) - 1
        end = min(byte + EXCERPT_BYTES, int(self.bounds[index + 1]))
        position = piece.start + token - int(self.pieces.begins[index])
        return Hit(piece, position, text_of(self.data[byte:end]))


@dataclass(frozen=True, slots=True)
class End:
    """The last bytes of a piece that is cut off, and of each the token in its block."""

    piece: Piece
    data: bytes
    positions: np.ndarray


class TextSearch:
    """Looks for `text` in the chunks of one split, given in order."""

    def __init__(self, text: str) -> None:
        self._wanted = text.encode("utf-8")
        self._ends: dict[int, list[End]] = {}  # of each document that goes on in a later block
        self._told: set[Piece] = set()

    def hits(self, chunk: Chunk) -> list[Hit]:
        """The pieces with the text, each once; of an earlier chunk too, if the text ends only in this one."""
        found: dict[Piece, Hit] = {}
        for hit in [*self._across_pieces(chunk), *self._within_pieces(chunk)]:
            if hit.piece not in self._told and (hit.piece not in found or hit.position < found[hit.piece].position):
                found[hit.piece] = hit
        waiting = {end.piece for ends in self._ends.values() for end in ends}
        self._told = (self._told | set(found)) & waiting
        return sorted(found.values(), key=lambda hit: (hit.piece.block, hit.piece.number))

    def _within_pieces(self, chunk: Chunk) -> Iterator[Hit]:
        at = 0
        while (at := chunk.data.find(self._wanted, at)) >= 0:
            index = int(np.searchsorted(chunk.bounds, at, side="right")) - 1
            end = int(chunk.bounds[index + 1])
            if at + len(self._wanted) <= end:
                yield chunk.hit(index, at)
            at = end

    def _across_pieces(self, chunk: Chunk) -> Iterator[Hit]:
        """Hits over the cuts of documents, which lie at the ends of pieces without EOS."""
        data = np.frombuffer(chunk.data, np.uint8)
        is_cut = data[chunk.bounds[1:] - 1] != NO_TEXT[0]
        for index in np.flatnonzero(is_cut | (chunk.pieces.offsets > 0)).tolist():
            document_id = int(chunk.pieces.document_ids[index])
            before = self._ends.pop(document_id, [])
            if before:
                last = before[-1].piece
                told = last.num_tokens_before + last.num_tokens
                assert told == chunk.pieces.offsets[index], f"pieces of document {document_id} are out of order"
            yield from self._across_cut(before, chunk, index)
            if is_cut[index]:
                self._ends[document_id] = self._last_bytes([*before, self._end_of(chunk, index)])

    def _across_cut(self, before: list[End], chunk: Chunk, index: int) -> Iterator[Hit]:
        begin, end = int(chunk.bounds[index]), int(chunk.bounds[index + 1])
        reach = len(self._wanted) - 1
        earlier = b"".join(end.data for end in before)
        joined = earlier + chunk.data[begin : min(end, begin + reach)]
        at = joined.find(self._wanted, max(0, len(earlier) - reach))
        if at < 0:
            return
        passed = 0
        for cut in before:
            inside = max(0, at - passed)
            if inside < len(cut.data):
                yield Hit(cut.piece, int(cut.positions[inside]), text_of(cut.data[inside:]))
            passed += len(cut.data)
        yield chunk.hit(index, begin)

    def _end_of(self, chunk: Chunk, index: int) -> End:
        end = int(chunk.bounds[index + 1])
        begin = max(int(chunk.bounds[index]), end - len(self._wanted) + 1)
        piece = chunk.pieces.piece(index)
        tokens = np.searchsorted(chunk.text.bounds, np.arange(begin, end), side="right") - 1
        return End(piece, chunk.data[begin:end], tokens - int(chunk.pieces.begins[index]) + piece.start)

    def _last_bytes(self, ends: list[End]) -> list[End]:
        """The last of `ends`, as many as a text can begin in that goes on after them."""
        num_bytes = sum(len(end.data) for end in ends)
        while len(ends) > 1 and num_bytes - len(ends[0].data) >= len(self._wanted) - 1:
            num_bytes -= len(ends[0].data)
            ends = ends[1:]
        return ends


def find_text(
    tracer: BlockProvenance, splits: Sequence[Split], text: str, *, progress: Progress, num_workers: int
) -> Iterator[Hit]:
    """All pieces in `splits` with `text` or a part of it, as they are found; `num_workers` threads decode.

    Raises:
        UserError: when the tokenizer's decoder is none by which text can be found, or a shard is damaged.
    """
    token_bytes = TokenBytes(tracer.folder / "tokenizer")
    token_bytes.check(tracer.manifest.origin.tokenizer.canary_ids)
    num_found = 0
    with ThreadPoolExecutor(num_workers) as executor:
        for split in splits:
            search = TextSearch(text)
            groups = row_groups(tracer, split)
            under_way = deque(_submit(executor, tracer, token_bytes, islice(groups, num_workers)))
            while under_way:
                group, future = under_way.popleft()
                hits = search.hits(future.result())
                under_way.extend(_submit(executor, tracer, token_bytes, islice(groups, 1)))
                num_found += len(hits)
                progress.advance(group.num_bytes, f"found in {num_found:,} pieces")
                yield from hits


def _submit(
    executor: ThreadPoolExecutor, tracer: BlockProvenance, token_bytes: TokenBytes, groups: Iterable[RowGroup]
) -> list[tuple[RowGroup, Future[Chunk]]]:
    return [(group, executor.submit(load_chunk, tracer, token_bytes, group)) for group in groups]


def row_groups(tracer: BlockProvenance, split: Split) -> Iterator[RowGroup]:
    """The row groups of a split, in order."""
    first_block = 0
    for shard in tracer.manifest.splits[split].shards:
        metadata = tracer.open_shard(shard).metadata
        for number in range(metadata.num_row_groups):
            num_rows = metadata.row_group(number).num_rows
            yield RowGroup(split, shard, number, first_block, shard.num_bytes * num_rows // shard.num_rows)
            first_block += num_rows


def load_chunk(tracer: BlockProvenance, token_bytes: TokenBytes, group: RowGroup) -> Chunk:
    """The blocks of a row group as bytes; a space that the encoder put before a document is no text."""
    origin = tracer.manifest.origin
    rows = tracer.open_shard(group.shard).read_row_group(group.number, use_threads=False)
    pieces = PieceTable(rows, split=group.split, first_block=group.first_block, block_length=origin.block_length)
    text = token_bytes.join(np.from_dlpack(rows["input_ids"].combine_chunks().flatten()))
    data = text.data
    if token_bytes.drops_first_space:
        num_bos = 0 if origin.token_rules.bos_token_id is None else 1
        first_tokens = pieces.begins + num_bos - pieces.offsets
        first_bytes = text.bounds[first_tokens[(pieces.offsets <= num_bos) & (first_tokens < pieces.ends)]]
        data = data.copy()
        data[first_bytes[data[first_bytes] == ord(" ")]] = NO_TEXT[0]
    return Chunk(data.tobytes(), np.append(text.bounds[pieces.begins], len(data)), text, pieces)
