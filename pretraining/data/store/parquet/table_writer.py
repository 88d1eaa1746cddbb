"""A Parquet file of numbers and lists of numbers, written a row group at a time.

Of blocks this takes 0.42 s of CPU time for 74 million ids, of which zstd is 0.37, and pyarrow 0.97: it makes levels of
every number, and widens it before it divides its bytes. Compression is apart from writing, for other threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pretraining.data.store.parquet.metadata import ColumnChunk, RowGroup, footer, page_header
from pretraining.data.store.parquet.pages import PageMaker
from pretraining.system.files import HashedFile

MAGIC = b"PAR1"


@dataclass(frozen=True)
class CompressedColumn:
    """A column of a row group: its header and content page by page, and their size without compression."""

    field: pa.Field
    num_values: int
    num_uncompressed_bytes: int
    parts: Sequence[bytes | memoryview]


@dataclass(frozen=True)
class CompressedTable:
    """A table as its row groups: the rows of each, and its columns."""

    schema: pa.Schema
    groups: Sequence[tuple[int, Sequence[CompressedColumn]]]

    @property
    def num_rows(self) -> int:
        """Of all row groups."""
        return sum(num_rows for num_rows, _ in self.groups)


def compress(table: pa.Table) -> CompressedTable:
    """A table without nulls, by zstd, in row groups as it is in chunks."""
    groups = [
        (len(batch), [_compress_column(*column) for column in zip(table.schema, batch.columns, strict=True)])
        for batch in table.to_batches()
    ]
    return CompressedTable(table.schema, groups)


def _compress_column(field: pa.Field, column: pa.Array) -> CompressedColumn:
    codec = pa.Codec("zstd")  # works without Python's lock
    parts: list[bytes | memoryview] = []
    num_values = num_uncompressed_bytes = 0
    for num_levels, page in PageMaker(field).pages(column):
        compressed = codec.compress(page)
        header = page_header(field, num_levels, page.nbytes, compressed.size)
        parts += [header, memoryview(compressed)]
        num_values += num_levels
        num_uncompressed_bytes += len(header) + page.nbytes
    return CompressedColumn(field, num_values, num_uncompressed_bytes, parts)


class TableWriter:
    """Writes tables of one schema, like pyarrow's ParquetWriter; as that, does not close the file.

    The file has the schema that pyarrow would give it, so that readers find the same types.
    """

    def __init__(self, file: HashedFile, schema: pa.Schema) -> None:
        self._file = file
        self._schema = schema
        self._groups: list[RowGroup] = []
        file.write(MAGIC)

    def write_table(self, table: CompressedTable) -> None:
        """Append the row groups of a table."""
        for num_rows, columns in table.groups:
            self._groups.append(RowGroup(num_rows, [self._write_column(column) for column in columns]))

    def _write_column(self, column: CompressedColumn) -> ColumnChunk:
        offset = self._file.tell()
        for part in column.parts:
            self._file.write(part)
        size = self._file.tell() - offset
        return ColumnChunk(column.field, column.num_values, offset, column.num_uncompressed_bytes, size)

    def close(self) -> None:
        """Write the footer."""
        end = footer(self._schema, self._groups)
        self._file.write(end + len(end).to_bytes(4, "little") + MAGIC)
