"""A Parquet file of numbers and lists of numbers, written a row group at a time.

Of blocks this takes 0.42 s of CPU time for 74 million ids, of which zstd is 0.37, and pyarrow 0.97: it makes levels of
every number, and widens it before it divides its bytes.
"""

import pyarrow as pa

from pretraining.data.store.parquet.metadata import ColumnChunk, RowGroup, footer, page_header
from pretraining.data.store.parquet.pages import PageMaker
from pretraining.system.files import HashedFile

MAGIC = b"PAR1"


class TableWriter:
    """Writes tables of one schema, like pyarrow's ParquetWriter, compressed by zstd; as that, does not close the file.

    The file has the schema that pyarrow would give it, so that readers find the same types.
    """

    def __init__(self, file: HashedFile, schema: pa.Schema) -> None:
        self._file = file
        self._schema = schema
        self._makers = [PageMaker(field) for field in schema]
        self._codec = pa.Codec("zstd")  # compresses without Python's lock
        self._groups: list[RowGroup] = []
        file.write(MAGIC)

    def write_table(self, table: pa.Table) -> None:
        """Append a table without nulls, in row groups as it is in chunks; two pages at a time are in memory."""
        for batch in table.to_batches():
            columns = zip(self._schema, self._makers, batch.columns, strict=True)
            self._groups.append(RowGroup(len(batch), [self._write_column(*column) for column in columns]))

    def _write_column(self, field: pa.Field, maker: PageMaker, column: pa.Array) -> ColumnChunk:
        offset = self._file.tell()
        num_values = num_uncompressed_bytes = 0
        for num_levels, page in maker.pages(column):
            compressed = self._codec.compress(page)
            header = page_header(field, num_levels, page.nbytes, compressed.size)
            self._file.write(header)
            self._file.write(memoryview(compressed))
            num_values += num_levels
            num_uncompressed_bytes += len(header) + page.nbytes
        return ColumnChunk(field, num_values, offset, num_uncompressed_bytes, self._file.tell() - offset)

    def close(self) -> None:
        """Write the footer."""
        end = footer(self._schema, self._groups)
        self._file.write(end + len(end).to_bytes(4, "little") + MAGIC)
