"""Scan the documents of a split, and find the blocks that contain a text.

Every token is read once, a row group at a time. A document that was cut at the end of a block is joined again, wherever
in the split its next piece is, so that matches are found across blocks. A text is found whatever its ids are there
(after a space, inside a word): ids become bytes (token_bytes.py), and bytes are searched.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from pretraining.cli.progress import Progress
from pretraining.data.encode.encoding import bounded_parallel_map
from pretraining.data.encode.splits import Split
from pretraining.data.inspect.provenance import BlockProvenance, Piece, PieceTable
from pretraining.data.store.shards import Shard
from pretraining.data.tokenize.token_bytes import NO_TEXT, text_of
from pretraining.data.tokenize.tokenizer import TokenRules

EXCERPT_BYTES = 120

S = TypeVar("S")
T = TypeVar("T")
RowGroup = tuple[Shard, int, int, int]  # number in the shard, first block, share of the shard's bytes


@dataclass(frozen=True, slots=True)
class DocumentTokens:
    """Tokens of documents: document i is `ids[begins[i]:ends[i]]`; `pieces_of(i)` are its pieces in blocks, in order.

    Some are empty, in the place of a piece that is not a document.
    """

    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray
    document_ids: np.ndarray
    pieces_of: Callable[[int], Sequence[Piece]]


def scan_documents(
    tracer: BlockProvenance, split: Split, search: Callable[[DocumentTokens], T], *, num_workers: int
) -> Iterator[tuple[list[tuple[DocumentTokens, T]], int]]:
    """What `search` finds in the documents that end in each row group, in order, and the group's share of the bytes.

    Threads read and search.
    """

    def searched(group: tuple[list[DocumentTokens], int]) -> tuple[list[tuple[DocumentTokens, T]], int]:
        return [(documents, search(documents)) for documents in group[0]], group[1]

    tables = _each_in_threads(partial(_read_row_group, tracer, split), _row_groups(tracer, split), num_workers)
    documents = _join_documents(tables, tracer.manifest.origin.token_rules)
    return _each_in_threads(searched, documents, num_workers)


def _each_in_threads(work: Callable[[S], T], items: Iterator[S], num_workers: int) -> Iterator[T]:
    """What `work` returns for each item, in order; each thread has one item, and one more is read ahead."""
    return bounded_parallel_map(work, items, num_workers=num_workers, cost=lambda _: 1, max_cost=num_workers + 1)


def _row_groups(tracer: BlockProvenance, split: Split) -> Iterator[RowGroup]:
    first_block = 0
    for shard in tracer.manifest.splits[split].shards:
        metadata = tracer.open_shard(shard).metadata
        for number in range(metadata.num_row_groups):
            num_rows = metadata.row_group(number).num_rows
            yield shard, number, first_block, shard.num_bytes * num_rows // shard.num_rows
            first_block += num_rows


def _read_row_group(tracer: BlockProvenance, split: Split, group: RowGroup) -> tuple[PieceTable, np.ndarray, int]:
    shard, number, first_block, num_bytes = group
    rows = tracer.open_shard(shard).read_row_group(number, use_threads=False)
    length = tracer.manifest.origin.block_length
    table = PieceTable(rows, split=split, first_block=first_block, block_length=length)
    return table, np.from_dlpack(rows["input_ids"].combine_chunks().flatten()), num_bytes


def _join_documents(
    groups: Iterable[tuple[PieceTable, np.ndarray, int]], rules: TokenRules
) -> Iterator[tuple[list[DocumentTokens], int]]:
    """The documents in one piece of each row group, and those of several pieces that end in it.

    A document ends with EOS. Where BOS is the same id, it begins with it as well, maybe at the end of a block.
    """
    num_bos = 0 if rules.bos_token_id is None else 1
    unfinished: dict[int, list[tuple[np.ndarray, Piece]]] = {}
    for table, ids, num_bytes in groups:
        num_seen = table.offsets + table.ends - table.begins
        is_last = (ids[table.ends - 1] == rules.eos_token_id) & (num_seen > num_bos)
        is_whole = is_last & (table.offsets == 0)
        joined = []
        for number in np.flatnonzero(~is_whole).tolist():
            piece = table.piece(number)
            parts = unfinished.setdefault(piece.document_id, [])
            parts.append((ids[table.begins[number] : table.ends[number]].copy(), piece))  # a view would keep the group
            if is_last[number]:
                joined.append(unfinished.pop(piece.document_id))
        ends = np.where(is_whole, table.ends, table.begins)
        whole = DocumentTokens(ids, table.begins, ends, table.document_ids, partial(_only_piece, table))
        yield [whole, *_joined(joined)], num_bytes
    yield _joined(list(unfinished.values())), 0  # their ends are in the tail, which is in no block


def _only_piece(table: PieceTable, index: int) -> list[Piece]:
    return [table.piece(index)]


def _joined(documents: Sequence[Sequence[tuple[np.ndarray, Piece]]]) -> list[DocumentTokens]:
    """Documents of several pieces each, if there are any."""
    if not documents:
        return []
    pieces = [[piece for _, piece in parts] for parts in documents]
    for document in pieces:
        ends_of_pieces = np.cumsum([0, *(piece.num_tokens for piece in document)])
        before = [piece.num_tokens_before for piece in document]
        assert before == ends_of_pieces[:-1].tolist(), f"document {document[0].document_id} is out of order"
    lengths = np.array([sum(piece.num_tokens for piece in document) for document in pieces])
    ids = np.concatenate([part for parts in documents for part, _ in parts])
    ends = np.cumsum(lengths)
    document_ids = np.array([document[0].document_id for document in pieces])
    return [DocumentTokens(ids, ends - lengths, ends, document_ids, pieces.__getitem__)]


@dataclass(frozen=True, slots=True)
class Hit:
    """A piece with the text or a part of it: the token where that begins, and the piece's text from there on."""

    piece: Piece
    position: int
    excerpt: str


class _TextSearch:
    """Finds `text` in documents; several threads may use it."""

    def __init__(self, tracer: BlockProvenance, text: str) -> None:
        self._wanted = text.encode("utf-8")
        origin = tracer.manifest.origin
        self._num_bos = 0 if origin.token_rules.bos_token_id is None else 1
        self._token_bytes = tracer.token_bytes
        self._token_bytes.check(origin.tokenizer.canary_ids)

    def __call__(self, documents: DocumentTokens) -> list[Hit]:
        """The pieces with the text or a part of it, in order."""
        text = self._token_bytes.join(documents.ids)
        data = self._without_added_spaces(text.data, text.bounds, documents).tobytes()
        begins, ends = text.bounds[documents.begins], text.bounds[documents.ends]
        hits: list[Hit] = []
        at = 0
        while (at := data.find(self._wanted, at)) >= 0:
            index = int(np.searchsorted(begins, at, side="right")) - 1
            if at + len(self._wanted) <= ends[index]:
                hits += self._hits(data, text.bounds, documents, index)
            at = int(begins[index + 1]) if index + 1 < len(begins) else len(data)
        return hits

    def _without_added_spaces(self, data: np.ndarray, bounds: np.ndarray, documents: DocumentTokens) -> np.ndarray:
        """Hide the space that some encoders put before a document."""
        if not self._token_bytes.drops_first_space:
            return data
        first_tokens = documents.begins + self._num_bos
        first_bytes = bounds[first_tokens[first_tokens < documents.ends]]
        data = data.copy()
        data[first_bytes[data[first_bytes] == ord(" ")]] = NO_TEXT[0]
        return data

    def _hits(self, data: bytes, bounds: np.ndarray, documents: DocumentTokens, index: int) -> Iterator[Hit]:
        """The first match, or part of a match, in each piece of a document."""
        at = 0
        for piece in documents.pieces_of(index):
            begin = int(documents.begins[index]) + piece.num_tokens_before
            end = begin + piece.num_tokens
            earliest = max(at, int(bounds[documents.begins[index]]), int(bounds[begin]) - len(self._wanted) + 1)
            at = data.find(self._wanted, earliest, int(bounds[documents.ends[index]]))
            if at < 0:
                return
            token = max(begin, int(np.searchsorted(bounds, at, side="right")) - 1)
            if token < end:
                byte = max(at, int(bounds[token]))
                excerpt = text_of(data[byte : min(byte + EXCERPT_BYTES, int(bounds[end]))])
                yield Hit(piece, piece.start + token - begin, excerpt)


def find_text(
    tracer: BlockProvenance, splits: Sequence[Split], text: str, *, progress: Progress, num_workers: int
) -> Iterator[Hit]:
    """All pieces in `splits` with `text` or a part of it, each once, as the ends of their documents are read.

    Raises:
        UserError: when text cannot be found by the tokenizer's bytes, or a shard is damaged.
    """
    search = _TextSearch(tracer, text)
    num_found = 0
    for split in splits:
        for results, num_bytes in scan_documents(tracer, split, search, num_workers=num_workers):
            hits = [hit for _, found in results for hit in found]
            num_found += len(hits)
            progress.advance(num_bytes, f"found in {num_found:,} pieces")
            yield from sorted(hits, key=lambda hit: (hit.piece.block, hit.piece.number))
