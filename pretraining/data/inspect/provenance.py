"""From the tokens of a block to their documents, and to file, line and text of these in the input.

A look-up reads only the manifest and the row groups that it needs. Blocks are numbered from 0 over the shards of a
split in the manifest's order, as in training; the table of documents is sorted by document_id.
"""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretraining.data.encode.splits import Split
from pretraining.data.encode.token_documents import join_ids
from pretraining.data.input.documents import Document
from pretraining.data.input.files import find_file
from pretraining.data.input.reading import parse_lines, read_batches
from pretraining.data.input.slices import FileRange
from pretraining.data.store.integrity import shard_file
from pretraining.data.store.manifest import StoreSpec, read_manifest
from pretraining.data.store.shards import Shard
from pretraining.data.tokenize.token_bytes import TokenBytes
from pretraining.data.tokenize.tokenizer import DocumentTokenizer
from pretraining.errors import UserError

PIECE_COLUMNS = ["document_starts", "document_ids", "document_offsets", "num_padding_tokens"]
ROWS_AT_ONCE = 16  # of a row group of about 1,000 blocks of 4,096; those after the wanted one are not decoded


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of tokens of one document in a block: from token `start` on, after `num_tokens_before` of the document."""

    split: Split
    block: int
    number: int
    start: int
    num_tokens: int
    document_id: int
    num_tokens_before: int


@dataclass(frozen=True, slots=True)
class DocumentLocation:
    """A row of the table of documents; `num_tokens` counts BOS and EOS, `byte_offset` counts rows in Parquet."""

    document_id: int
    split: Split
    source: str
    file: str
    line: int
    byte_offset: int
    num_text_bytes: int
    num_tokens: int


class PieceTable:
    """The pieces of consecutive blocks, in order; piece i is tokens `begins[i]` to `ends[i]` of them all.

    `rows` are rows of a shard; the first is block `first_block` of `split`.
    """

    def __init__(self, rows: pa.Table, *, split: Split, first_block: int, block_length: int) -> None:
        self._split: Split = split
        self._first_block = first_block
        self._block_length = block_length
        lists = [rows[name].combine_chunks() for name in PIECE_COLUMNS[:3]]
        starts, self.document_ids, self.offsets = (_numbers(column.flatten()) for column in lists)
        counts = _numbers(lists[0].value_lengths())
        self._owners = np.repeat(np.arange(len(counts)), counts)
        self._first_pieces = np.cumsum(counts) - counts
        self.begins = self._owners * block_length + starts
        self.ends = np.append(self.begins[1:], 0)
        num_padding_tokens = _numbers(rows["num_padding_tokens"].combine_chunks())
        block_ends = np.arange(1, len(counts) + 1) * block_length - num_padding_tokens
        self.ends[self._first_pieces + counts - 1] = block_ends

    def __len__(self) -> int:
        return len(self.begins)

    def piece(self, index: int) -> Piece:
        """Piece `index` of all blocks."""
        owner = int(self._owners[index])
        begin = int(self.begins[index])
        return Piece(
            split=self._split,
            block=self._first_block + owner,
            number=index - int(self._first_pieces[owner]),
            start=begin - owner * self._block_length,
            num_tokens=int(self.ends[index]) - begin,
            document_id=int(self.document_ids[index]),
            num_tokens_before=int(self.offsets[index]),
        )


class BlockProvenance:
    """Looks up blocks and documents of one store; `flag` names it in errors."""

    def __init__(self, folder: Path, *, flag: str) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, flag=flag)
        self._flag = flag
        self._documents = pa.table({})
        self._document_ids = np.empty(0, np.int64)

    @cached_property
    def token_bytes(self) -> TokenBytes:
        """The bytes of each token."""
        return TokenBytes(self.folder / "tokenizer")

    def pieces(self, split: Split, block: int) -> list[Piece]:
        """The pieces in a block, in order.

        Raises:
            UserError: when the split does not have that many blocks.
        """
        parquet, group, row = self._place_of_block(split, block)
        rows = parquet.read_row_group(group, columns=PIECE_COLUMNS).slice(row, 1)
        length = self.manifest.origin.block_length
        table = PieceTable(rows, split=split, first_block=block, block_length=length)
        return [table.piece(index) for index in range(len(table))]

    def piece_at(self, split: Split, block: int, position: int) -> Piece:
        """The piece that has token `position` of a block.

        Raises:
            UserError: when the block or position does not exist, or is padding.
        """
        length = self.manifest.origin.block_length
        if not 0 <= position < length:
            raise UserError(f"--position {position}: a block of {self.folder} has tokens 0 to {length - 1:,}")
        pieces = self.pieces(split, block)
        piece = pieces[bisect.bisect_right(pieces, position, key=lambda piece: piece.start) - 1]
        if position >= piece.start + piece.num_tokens:
            raise UserError(f"--position {position}: is padding, after the last document of block {block}")
        return piece

    def token_ids(self, split: Split, block: int) -> np.ndarray:
        """The ids of a block, of shape [block_length]."""
        parquet, group, row = self._place_of_block(split, block)
        batches = parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=["input_ids"], use_threads=False)
        batch = next(itertools.islice(batches, row // ROWS_AT_ONCE, None))
        return np.from_dlpack(batch.column(0).slice(row % ROWS_AT_ONCE, 1).flatten())

    def document(self, document_id: int) -> DocumentLocation:
        """The row of a document; fast for ids in order, since the last row group is kept."""
        ids = self._document_ids
        if not (len(ids) and ids[0] <= document_id <= ids[-1]):
            self._load_documents(document_id)
        row = int(np.searchsorted(self._document_ids, document_id))
        found = self._documents.slice(row, 1).to_pylist()
        assert [row["document_id"] for row in found] == [document_id], f"document {document_id} is missing"
        return DocumentLocation(**found[0])

    def open_shard(self, shard: Shard) -> pq.ParquetFile:
        """A shard of the store.

        Raises:
            UserError: when it is missing, has another size than in the manifest, or is a link out of the store.
        """
        return pq.ParquetFile(shard_file(self.folder, shard, flag=self._flag))

    def _place_of_block(self, split: Split, block: int) -> tuple[pq.ParquetFile, int, int]:
        """The shard of a block, its row group, and its row in that."""
        contents = self.manifest.splits[split]
        if not 0 <= block < contents.num_blocks:
            last = f"0 to {contents.num_blocks - 1:,}" if contents.num_blocks else "none"
            raise UserError(
                f"--block {block}: {self.folder} has {contents.num_blocks:,} blocks in split {split}, {last}"
            )
        number, row = _locate([shard.num_rows for shard in contents.shards], block)
        parquet = self.open_shard(contents.shards[number])
        metadata = parquet.metadata
        return parquet, *_locate([metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)], row)

    def _load_documents(self, document_id: int) -> None:
        shards = self.manifest.documents
        shard = bisect.bisect_right(shards, document_id, key=lambda shard: _first_id(self.open_shard(shard), 0)) - 1
        parquet = self.open_shard(shards[max(shard, 0)])
        groups = range(parquet.num_row_groups)
        group = bisect.bisect_right(groups, document_id, key=lambda group: _first_id(parquet, group)) - 1
        self._documents = parquet.read_row_group(max(group, 0))
        self._document_ids = _numbers(self._documents["document_id"].combine_chunks())


def read_source(place: DocumentLocation, origin: StoreSpec) -> Document:
    """The document at its line of its file; a compressed file is decompressed up to there.

    Raises:
        UserError: when the file is missing, is not the one that was preprocessed, or has conversations.
    """
    path = place.file
    if origin.chat_template is not None:
        raise UserError(f"{path}:{place.line}: is a conversation; the chat template made its tokens")
    try:
        file = find_file(path)
    except UserError as error:
        reason = "not found (the path is as preprocess.py was given it)" if "not found" in str(error) else str(error)
        raise UserError(f"{path}: {reason}; the text is in the blocks") from None
    num_bytes = next(source.num_bytes for source in origin.sources if source.path == path)
    if file.num_bytes != num_bytes:
        raise UserError(f"{path}: has changed, from {num_bytes:,} bytes to {file.num_bytes:,}")
    options = origin.reading_options
    rest = [FileRange(file_number=0, start=place.byte_offset, end=None, first_line=place.line)]
    batch = next(read_batches([file], rest, None, options), None)
    _, parsed = next(parse_lines(batch, options)) if batch else (None, None)
    if not isinstance(parsed, Document):
        raise UserError(f"{path}:{place.line}: has changed, the line is not a document now")
    return parsed


def has_ids(
    source: Document, tokenizer: DocumentTokenizer, *, piece: Piece, block_ids: np.ndarray, num_document_tokens: int
) -> bool:
    """Whether `source` has as many tokens as its document, and those of the piece are where `block_ids` has them."""
    if source.ids is None:
        ids = tokenizer.encode([source.text]).ids
    else:
        ids = tokenizer.surround(join_ids([source], bos_token_id=tokenizer.rules.bos_token_id)).ids
    expected = ids[piece.num_tokens_before : piece.num_tokens_before + piece.num_tokens]
    found = block_ids[piece.start : piece.start + piece.num_tokens]
    return len(ids) == num_document_tokens and np.array_equal(expected, found)


def _numbers(array: pa.Array) -> np.ndarray:
    """An int64 array; Arrow's to_numpy would import pandas, which takes longer than everything else here."""
    return np.from_dlpack(array).astype(np.int64)


def _locate(sizes: Sequence[int], number: int) -> tuple[int, int]:
    """The group, of consecutive groups, that has item `number`, and the item's number in it.

    >>> _locate([5, 3], 6)
    (1, 1)
    """
    ends = list(itertools.accumulate(sizes))
    group = bisect.bisect_right(ends, number)
    return group, number - ends[group] + sizes[group]


def _first_id(parquet: pq.ParquetFile, group: int) -> int:
    """The smallest document_id of a row group, from its statistics."""
    return parquet.metadata.row_group(group).column(0).statistics.min
