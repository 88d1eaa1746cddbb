"""The lines of one file, in whatever format and compression it is, from any line on.

Nothing larger than `max_document_bytes` is kept in memory: such a line is read to its end and comes without content.
"""

import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pretraining.corpus.documents import SHOWN_BYTES, JsonFields, RawLine, field_of
from pretraining.corpus.inputs import Compression, InputFile
from pretraining.corpus.xz import XzReader

READ_BUFFER_BYTES = 4 << 20  # lines of a 4 MB buffer parse 25 % faster than of the default 8 KB one
ROWS_AT_ONCE = 8  # of a Parquet file: 50 MB if each is as large as the largest document; 32 are no faster


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """How files become lines: the fields, the largest line, and whether blank lines divide plain text."""

    fields: JsonFields
    max_document_bytes: int
    split_text_files: bool


@dataclass(frozen=True, slots=True)
class LineSource:
    """The lines of a file, and how many bytes of the file itself are read when a line has been."""

    lines: Iterator[RawLine]
    file_bytes: Callable[[RawLine], int]


def open_file(file: InputFile) -> BinaryIO:
    """The file's own bytes, unbuffered."""
    if file.is_remote:
        from pretraining.corpus.hub_inputs import open_hub_file  # the Hub's client takes a moment to import

        return open_hub_file(file.location)
    return Path(file.location).open("rb", buffering=0)


def open_lines(
    file: InputFile, raw: BinaryIO, *, offset: int, num_lines_before: int, end: int | None, options: ReadingOptions
) -> LineSource:
    """The lines of `file`, opened unbuffered as `raw`, from `offset` (of a line, or a row) up to `end`."""
    if file.format == "parquet":
        return _parquet_rows(file, raw, offset, options)
    stream = _skip_to(_decompressed(file, raw), offset)
    lines = _lines(stream, offset, num_lines_before, end, options.max_document_bytes)
    if file.format == "text":
        largest = options.max_document_bytes
        lines = _paragraphs(lines, largest) if options.split_text_files else _whole_text(lines, largest)
    if file.compression is None:
        return LineSource(lines, lambda line: line.end_offset - offset)
    begun = raw.tell()
    # pyarrow closes the file when it has come to its end.
    return LineSource(lines, lambda _: (file.num_bytes if raw.closed else raw.tell()) - begun)


def _decompressed(file: InputFile, raw: BinaryIO) -> BinaryIO:
    stream: Any = raw if file.compression is None else DECOMPRESSORS[file.compression](raw)
    return io.BufferedReader(stream, READ_BUFFER_BYTES)


def _skip_to(stream: BinaryIO, offset: int) -> BinaryIO:
    """Go on to `offset` of the decompressed bytes, by reading where the stream cannot jump."""
    if offset and stream.seekable():
        stream.seek(offset)
        return stream
    while offset > 0 and (content := stream.read(min(offset, READ_BUFFER_BYTES))):
        offset -= len(content)
    return stream


def _lines(stream: BinaryIO, offset: int, number: int, end: int | None, max_bytes: int) -> Iterator[RawLine]:
    while end is None or offset < end:
        content = stream.readline(max_bytes + 1)
        if not content:
            return
        number += 1
        num_bytes = len(content)
        if num_bytes > max_bytes and not content.endswith(b"\n"):
            num_bytes += _skip_line(stream)
            yield RawLine(number, offset, number, offset + num_bytes, num_bytes, None, content[:SHOWN_BYTES])
        else:
            yield RawLine(number, offset, number, offset + num_bytes, num_bytes, content)
        offset += num_bytes


def _skip_line(stream: BinaryIO) -> int:
    """Read to the end of a line; returns the number of bytes."""
    num_bytes = 0
    while content := stream.readline(READ_BUFFER_BYTES):
        num_bytes += len(content)
        if content.endswith(b"\n"):
            break
    return num_bytes


class _Run:
    """Lines that together are one, as long as they are not too large."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self._head = b""
        self._ends: tuple[RawLine, RawLine] | None = None  # first and last

    def add(self, line: RawLine) -> None:
        self._ends = (self._ends[0] if self._ends else line, line)
        self._num_bytes += line.num_bytes
        if self._num_bytes > self._max_bytes or not isinstance(line.content, bytes):
            self._num_bytes = max(self._num_bytes, self._max_bytes + 1)
            self._parts = []
        else:
            self._head = self._head or line.content[:SHOWN_BYTES]
            self._parts.append(line.content)

    def joined(self) -> Iterator[RawLine]:
        """The lines so far as one, if there are any."""
        if self._ends:
            first, last = self._ends
            too_large = self._num_bytes > self._max_bytes
            yield RawLine(
                number=first.number,
                byte_offset=first.byte_offset,
                end_line=last.end_line,
                end_offset=last.end_offset,
                num_bytes=last.end_offset - first.byte_offset,
                content=None if too_large else b"".join(self._parts),
                head=first.head or self._head,
            )


def _whole_text(lines: Iterator[RawLine], max_bytes: int) -> Iterator[RawLine]:
    """All lines as one."""
    run = _Run(max_bytes)
    for line in lines:
        run.add(line)
    yield from run.joined()


def _paragraphs(lines: Iterator[RawLine], max_bytes: int) -> Iterator[RawLine]:
    """Runs of lines between blank ones."""
    run = _Run(max_bytes)
    for line in lines:
        if isinstance(line.content, bytes) and not line.content.strip():
            yield from run.joined()
            run = _Run(max_bytes)
        else:
            run.add(line)
    yield from run.joined()


def _parquet_rows(file: InputFile, raw: BinaryIO, first_row: int, options: ReadingOptions) -> LineSource:
    # Page by page: otherwise a whole row group is read ahead, 500 MB of memory more in one of 400 MB.
    parquet = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
    num_rows = max(1, parquet.metadata.num_rows)
    return LineSource(
        _rows(parquet, first_row, options), lambda line: file.num_bytes * (line.end_offset - first_row) // num_rows
    )


def _rows(parquet: pq.ParquetFile, first_row: int, options: ReadingOptions) -> Iterator[RawLine]:
    roots = {name.split(".")[0] for name in (options.fields.text, options.fields.source)}
    roots |= {options.fields.text, options.fields.source}
    columns = [name for name in parquet.schema_arrow.names if name in roots]
    row = 0
    for group in range(parquet.num_row_groups):
        num_rows = parquet.metadata.row_group(group).num_rows
        if row + num_rows <= first_row:
            row += num_rows
            continue
        for batch in parquet.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns, use_threads=False):
            for record in _records(batch) if columns else [{}] * batch.num_rows:
                row += 1
                if row > first_row:
                    yield _row_line(row, record, options)


def _records(batch: pa.RecordBatch) -> list[Mapping[str, Any] | bytes]:
    """The rows of `batch`; one that is not UTF-8, though its column says so, is empty bytes."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [b""]
        return [record for row in range(batch.num_rows) for record in _records(batch.slice(row, 1))]


def _row_line(number: int, record: Mapping[str, Any] | bytes, options: ReadingOptions) -> RawLine:
    text = field_of(record, options.fields.text)[1] if isinstance(record, Mapping) else None
    num_bytes = len(text.encode("utf-8", errors="surrogatepass")) if isinstance(text, str) else 16
    content = record if num_bytes <= options.max_document_bytes else None
    head = b"" if content is not None else str(record)[:SHOWN_BYTES].encode("utf-8", errors="backslashreplace")
    return RawLine(number, number - 1, number, number, num_bytes, content, head)


DECOMPRESSORS: dict[Compression, Callable[[BinaryIO], Any]] = {
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "xz": XzReader,
    # Of the readers for zstd, pyarrow's reports a truncated file, and reads on after a frame's end.
    "zstd": lambda raw: pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"),
}
