"""Parquet shards: their columns and tables, written a row group at a time, hashed meanwhile and fsynced."""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretraining.data.encode.encoded import DocumentMetadata
from pretraining.data.encode.splits import SPLITS
from pretraining.data.store.blocks import Blocks, join_blocks
from pretraining.data.store.parquet.table_writer import CompressedTable, TableWriter, compress
from pretraining.system.files import HashedFile

ROW_GROUPS_PER_FLUSH = 8  # 50 MB, in the thread that writes: so the end of a shard waits for the last ones only
NUM_MAKERS = 2  # one compresses 700 MB/s of text; more than one, as on busy cores it gets a part of one only
MAX_WAITING = 3  # row groups of 8 to 16 MB, so that packing does not wait for compression
DOCUMENTS_PREFIX = "documents/documents"
ANSWER_COLUMN = "is_answer"
ANSWER_BIT = 1 << 31  # set in the uint32 ids of answers during packing
DOCUMENT_SCHEMA = pa.schema(
    {
        "document_id": pa.int64(),
        "split": pa.string(),
        "source": pa.string(),
        "file": pa.string(),
        "line": pa.int64(),
        "byte_offset": pa.int64(),
        "num_text_bytes": pa.int64(),
        "num_tokens": pa.int64(),
    }
)


@dataclass(frozen=True)
class Shard:
    """One finished file: path in its folder, rows, size and hash."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str


def shard_path(prefix: str, number: int, count: int) -> str:
    """The path of a shard in a finished block store; `prefix` is DOCUMENTS_PREFIX, or data/ and the split."""
    return f"{prefix}-{number:05d}-of-{count:05d}.parquet"


class ShardThreads:
    """The threads of shards: some make and compress row groups at the same time, one writes them in their order."""

    def __init__(self) -> None:
        self.makers = ThreadPoolExecutor(NUM_MAKERS, thread_name_prefix="compress")
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="write")

    def close(self) -> None:
        """End them, after what they have to do."""
        self.makers.shutdown()
        self.writer.shutdown()


class ShardWriter:
    """Writes `root/path` by `threads`; without a row group no file is created."""

    def __init__(self, root: Path, path: str, threads: ShardThreads) -> None:
        self._threads = threads
        self._writing: deque[Future[None]] = deque()
        self._root = root
        self._path = path
        self._file: HashedFile | None = None
        self._num_rows = self._num_row_groups = 0

    def write(self, make_table: Callable[[], pa.Table]) -> None:
        """Append the table that `make_table` returns in a thread as one row group, after the previous ones.

        Raises:
            OSError: also when a previous one could not be written.
        """
        self._wait(MAX_WAITING - 1)
        making = self._threads.makers.submit(_make, make_table)
        self._writing.append(self._threads.writer.submit(self._write, making))

    def _wait(self, max_waiting: int) -> None:
        """Wait until at most this number of row groups is not written yet."""
        while len(self._writing) > max_waiting or (self._writing and self._writing[0].done()):
            self._writing.popleft().result()

    def _write(self, making: "Future[pa.Table | CompressedTable]") -> None:
        table = making.result()
        if self._file is None:
            self._file = HashedFile(self._root / self._path)
            self._writer = _open_writer(self._file, table)
        self._writer.write_table(table)
        self._num_rows += table.num_rows
        self._num_row_groups += 1
        if self._num_row_groups % ROW_GROUPS_PER_FLUSH == 0:
            self._file.flush()

    def close(self) -> list[Shard]:
        """Finish the file; the shard, if anything was written."""
        self._wait(0)
        if self._file is None:
            return []
        self._writer.close()
        self._file.close()
        return [Shard(self._path, self._num_rows, self._file.num_bytes, self._file.sha256)]


def _make(make_table: Callable[[], pa.Table]) -> pa.Table | CompressedTable:
    """Of blocks the compressed table, by our own writer, which is faster; of documents the table itself."""
    table = make_table()
    return compress(table) if "input_ids" in table.schema.names else table


def _open_writer(file: HashedFile, table: pa.Table | CompressedTable) -> TableWriter | pq.ParquetWriter:
    """Of documents that of pyarrow, with the statistics that look-ups read."""
    if isinstance(table, CompressedTable):
        return TableWriter(file, table.schema)
    return pq.ParquetWriter(file, table.schema, compression="zstd", use_dictionary=["source", "file", "split"])


def block_schema(block_length: int, dtype: str, *, has_answers: bool = False) -> pa.Schema:
    """Columns of a shard of blocks: ids; begins, ids and earlier tokens of documents; padding.

    `has_answers`: of conversations, with a column that marks the answers.
    """
    columns = {
        "input_ids": pa.list_(pa.type_for_alias(dtype), block_length),
        "document_starts": pa.list_(pa.uint32()),
        "document_ids": pa.list_(pa.int64()),
        "document_offsets": pa.list_(pa.int64()),
        "num_padding_tokens": pa.uint32(),
    }
    return pa.schema({**columns, ANSWER_COLUMN: pa.list_(pa.uint8(), block_length)} if has_answers else columns)


def block_table(batches: Sequence[Blocks], schema: pa.Schema) -> pa.Table:
    """One table of all blocks of `batches`."""
    blocks = join_blocks(batches)
    bounds = as_arrow(blocks.piece_bounds, pa.int32())
    lists = {
        name: pa.ListArray.from_arrays(bounds, as_arrow(getattr(blocks, name), schema.field(name).type.value_type))
        for name in ("document_starts", "document_ids", "document_offsets")
    }
    ids = blocks.input_ids.reshape(-1)
    numbers = {}
    if ANSWER_COLUMN in schema.names:
        numbers[ANSWER_COLUMN] = ids >= ANSWER_BIT
        ids = ids % ANSWER_BIT
    numbers["input_ids"] = ids
    written = without_nulls(schema)
    columns = {
        **{name: _blocks_of(values, written.field(name).type) for name, values in numbers.items()},
        **lists,
        "num_padding_tokens": as_arrow(blocks.num_padding_tokens, pa.uint32()),
    }
    return pa.table([columns[name] for name in schema.names], schema=written)


def _blocks_of(values: np.ndarray, list_type: pa.DataType) -> pa.Array:
    """The numbers of blocks, one after the other, as a column of lists."""
    return pa.FixedSizeListArray.from_arrays(as_arrow(values, list_type.value_type), type=list_type)


def without_nulls(schema: pa.Schema) -> pa.Schema:
    """The schema of blocks as it is written: no id is missing, so readers have nothing to check."""
    return pa.schema([_without_nulls(field) if pa.types.is_fixed_size_list(field.type) else field for field in schema])


def _without_nulls(field: pa.Field) -> pa.Field:
    element = field.type.value_field.with_nullable(False)
    return pa.field(field.name, pa.list_(element, field.type.list_size), nullable=False)


def as_arrow(values: np.ndarray, number_type: pa.DataType) -> pa.Array:
    """Numbers as a column of this type, which has space for them; `pa.array` imports pandas: 0.24 s."""
    values = np.ascontiguousarray(values, np.dtype(str(number_type)))
    return pa.Array.from_buffers(number_type, len(values), [None, pa.py_buffer(values)])


def document_table(
    batches: Sequence[DocumentMetadata], paths: Sequence[str], document_ids: np.ndarray, lengths: np.ndarray
) -> pa.Table:
    """One row per document of batches, each of one file; ids and numbers of tokens are those of all documents."""
    names = ("lines", "byte_offsets", "num_text_bytes", "splits")
    *others, splits = (np.concatenate([getattr(rows, name) for rows in batches]) for name in names)
    ids, *numbers = (as_arrow(column, pa.int64()) for column in (document_ids, *others, lengths))
    sources = [source for rows in batches for source in rows.sources]
    files = [path for rows, path in zip(batches, paths, strict=True) for _ in rows.sources]
    texts = [_strings(values) for values in ([SPLITS[number] for number in splits.tolist()], sources, files)]
    return pa.table([ids, *texts, *numbers], schema=DOCUMENT_SCHEMA)


def _strings(values: Sequence[str]) -> pa.Array:
    """Strings as a column; each different one is encoded once, as few are different."""
    encoded = {value: value.encode("utf-8") for value in set(values)}
    parts = [encoded[value] for value in values]
    bounds = np.zeros(len(parts) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, parts), np.int32, len(parts)), out=bounds[1:])
    return pa.StringArray.from_buffers(len(parts), pa.py_buffer(bounds), pa.py_buffer(b"".join(parts)))
