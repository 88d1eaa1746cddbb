"""Read the rows of a Parquet file in bounded memory, whatever the file contains.

The size of a row is checked in Arrow before Python gets it. A dictionary can make many large rows of one value, so
with a large one rows are read one by one. The size of a page is checked before it is decompressed: in the footer and
in the page's header.
"""

import io
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pretraining.data.input.documents import SHOWN_BYTES, ExpandsTooFarError, RawLine, ReadingOptions, field_of

ROWS_AT_ONCE = 8  # 50 MB if each is as large as the largest document; 32 are no faster
MAX_DICTIONARY_BYTES = 4 << 20  # writers end theirs at 1 MB; with a larger one rows are read one by one
ROW_OVERHEAD_BYTES = 1024  # offsets and validity of its columns
# Text compresses to a third, logs to a fiftieth.
MAX_EXPANSION = 100
HARMLESS_BYTES = 128 << 20
HEADER_BYTES = 32  # its first three numbers take 18 at most

TEXT_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)

Row = Mapping[str, Any] | bytes | None  # bytes: not UTF-8; None: too large


class ParquetRows:
    """The rows of the file that is open as `raw`; a row above `max_document_bytes` comes without content.

    Raises:
        pyarrow.ArrowException: when the file is damaged.
        ExpandsTooFarError: when a column of a row group is a bomb.
    """

    def __init__(self, raw: BinaryIO, options: ReadingOptions) -> None:
        # Page by page: otherwise a complete row group is read ahead, 500 MB of memory more for one of 400 MB.
        self._parquet = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
        self._raw = raw
        self._num_bytes = raw.seek(0, io.SEEK_END)
        self._text_field = options.text_field
        self._max_bytes = options.max_document_bytes
        self.num_rows = self._parquet.metadata.num_rows
        names = self._parquet.schema_arrow.names
        self._columns = _columns_to_read(names, options)
        self._has_whole_records = options.whole_records
        has_text = bool({options.text_field, options.text_field.split(".")[0]} & set(names))
        self._shown = b"" if has_text or options.whole_records else f"the columns are {', '.join(names)}".encode()

    def after(self, first_row: int) -> Iterator[RawLine]:
        """The rows from number `first_row` (from 0) on."""
        row = 0
        for group in range(self._parquet.num_row_groups):
            num_rows = self._parquet.metadata.row_group(group).num_rows
            if row + num_rows <= first_row:
                row += num_rows
                continue
            for batch in self._batches(group):
                for record, head in self._records(batch):
                    row += 1
                    if row > first_row:
                        yield self._line(row, record, head)

    def _batches(self, group: int) -> Iterator[pa.RecordBatch]:
        metadata = self._parquet.metadata.row_group(group)
        chunks = [metadata.column(number) for number in range(metadata.num_columns)]
        chunks = [chunk for chunk in chunks if self._is_read(chunk.path_in_schema)]
        dictionaries = [self._page_bytes(chunk.dictionary_page_offset) for chunk in chunks if chunk.has_dictionary_page]
        for chunk in chunks:
            self._check_expansion(chunk, group)
        num_rows = 1 if max(dictionaries, default=0) > MAX_DICTIONARY_BYTES else ROWS_AT_ONCE
        return self._parquet.iter_batches(num_rows, row_groups=[group], columns=self._columns, use_threads=False)

    def _is_read(self, path: str) -> bool:
        return any(path == name or path.startswith(f"{name}.") for name in self._columns)

    def _check_expansion(self, chunk: Any, group: int) -> None:
        offsets = [chunk.data_page_offset, *([chunk.dictionary_page_offset] if chunk.has_dictionary_page else [])]
        num_bytes = max(chunk.total_uncompressed_size, *map(self._page_bytes, offsets))
        num_compressed = min(chunk.total_compressed_size, self._num_bytes)
        if num_bytes > max(HARMLESS_BYTES, MAX_EXPANSION * num_compressed):
            raise ExpandsTooFarError(
                f"{chunk.path_in_schema} of row group {group} expands {num_compressed:,} bytes to {num_bytes:,}"
            )

    def _page_bytes(self, offset: int) -> int:
        """The uncompressed size in the header of the page at `offset`; 0 without a page."""
        position = self._raw.tell()
        self._raw.seek(max(0, offset))
        header = self._raw.read(HEADER_BYTES)
        self._raw.seek(position)
        return uncompressed_page_bytes(header)

    def _records(self, batch: pa.RecordBatch) -> Iterator[tuple[Row, bytes]]:
        """Each row; of one that is too large None and its first bytes."""
        if self._shown:
            yield from (({}, self._shown) for _ in range(batch.num_rows))
        elif batch.nbytes <= self._max_bytes:
            yield from ((row, b"") for row in _pylist(batch))
        else:
            for number in range(batch.num_rows):
                row = _decoded(batch.slice(number, 1))
                if row.nbytes > self._max_bytes + ROW_OVERHEAD_BYTES:
                    yield None, _head(row)
                else:
                    yield from ((record, b"") for record in _pylist(row))

    def _line(self, number: int, record: Row, head: bytes) -> RawLine:
        text = field_of(record, self._text_field)[1] if isinstance(record, Mapping) else None
        text = str(record) if self._has_whole_records and record is not None else text
        text = text.encode("utf-8", errors="surrogatepass") if isinstance(text, str) else text
        num_bytes = len(text) if isinstance(text, bytes) else 16
        if num_bytes > self._max_bytes:
            record, head = None, str(record)[:SHOWN_BYTES].encode("utf-8", errors="backslashreplace")
        return RawLine(number, number - 1, number, number, num_bytes, record, head)


def _columns_to_read(names: Sequence[str], options: ReadingOptions) -> list[str]:
    """The columns with the fields of documents, or of records; all where the fields of records are not there."""
    fields = {options.text_field, options.source_field}
    if options.whole_records:
        complete = [group for group in options.record_fields if all(_roots({name}) & set(names) for name in group)]
        fields = {name for group in complete for name in group} | set(options.more_fields)
        if not complete:
            return list(names)
    roots = _roots(fields)
    return [name for name in names if name in roots]


def _roots(fields: Set[str]) -> set[str]:
    """The columns that may have the fields, of which `a.b` may be in column a."""
    return {name.split(".")[0] for name in fields} | set(fields)


def uncompressed_page_bytes(header: bytes) -> int:
    """The uncompressed size in a page's header, its second number; 0 if the bytes are not a header.

    >>> uncompressed_page_bytes(bytes([0x15, 4, 0x15, 0x80, 0x01, 0x15, 20]))
    64
    """
    numbers, place = [], 0
    for _ in range(2):
        if header[place : place + 1] != b"\x15":  # Thrift's compact protocol: the next field, a number of 32 bits
            return 0
        place, number, shift = place + 1, 0, 0
        for byte in header[place : place + 5]:
            number |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                break
        numbers.append(number >> 1)  # zigzag, and never negative
    return numbers[1]


def _pylist(batch: pa.RecordBatch) -> Sequence[Mapping[str, Any] | bytes]:
    """The rows of `batch`; one that is not UTF-8 is empty bytes."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [b""]
        return [record for row in range(batch.num_rows) for record in _pylist(batch.slice(row, 1))]


def _decoded(row: pa.RecordBatch) -> pa.RecordBatch:
    """`row` without dictionaries and views, which hold the values of all rows."""
    columns = [c.cast(_plain(c.type)) if _plain(c.type) != c.type else c for c in row.columns]
    return pa.RecordBatch.from_arrays(columns, names=row.schema.names)


def _plain(column_type: pa.DataType) -> pa.DataType:
    """The type without dictionaries and views."""
    if pa.types.is_dictionary(column_type):
        return _plain(column_type.value_type)
    if pa.types.is_struct(column_type):
        return pa.struct([field.with_type(_plain(field.type)) for field in column_type.fields])
    views = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}
    return views.get(column_type, column_type)


def _head(row: pa.RecordBatch) -> bytes:
    """The first bytes of the first text in a row."""
    import pyarrow.compute as pc  # here: it takes 80 ms, a tenth of a start

    for column in row.columns:
        if any(is_kind(column.type) for is_kind in TEXT_KINDS):
            return pc.binary_slice(column.cast(pa.large_binary()), 0, SHOWN_BYTES)[0].as_py() or b""
    return b""
