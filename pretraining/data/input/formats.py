"""Read the lines of a file in any supported format and compression, starting anywhere.

A line larger than `max_document_bytes` is read to its end and comes without content, so memory is bounded.
"""

import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pretraining.data.input.compressed import DECOMPRESSORS, open_member
from pretraining.data.input.documents import SHOWN_BYTES, RawLine, ReadingOptions
from pretraining.data.input.files import InputFile
from pretraining.data.input.json.lists import begins_list, list_items
from pretraining.data.input.line_blocks import READ_BUFFER_BYTES, LineBlock, read_line_blocks
from pretraining.data.input.parquet_rows import ParquetRows
from pretraining.data.input.token_files import read_token_documents

BLANK_BYTES = 1 << 20  # consecutive blank lines up to this size come as one line


def open_file(file: InputFile) -> BinaryIO:
    """Open the file unbuffered."""
    if file.is_remote:
        from pretraining.data.input.hub import open_hub_file  # the Hub's client takes a moment to import

        return open_hub_file(file.location)
    if file.member is not None:
        return open_member(Path(file.location), file.member)
    return Path(file.location).open("rb", buffering=0)


def open_lines(
    file: InputFile, raw: BinaryIO, *, offset: int, num_lines_before: int, end: int | None, options: ReadingOptions
) -> tuple[Iterator[RawLine | LineBlock], Callable[[RawLine | LineBlock], int]]:
    """The lines of `file`, which is open as `raw`, from `offset` (of a line, or a row) up to `end`.

    The function gives the number of bytes of the file, compressed, that were read up to the end of a line or block.
    """
    if file.format == "parquet":
        rows = ParquetRows(raw, options)
        num_rows = max(1, rows.num_rows)
        return rows.after(offset), lambda line: file.num_bytes * (line.end_offset - offset) // num_rows
    if file.format == "tokens":
        documents = read_token_documents(
            Path(file.location), raw, options, offset=offset, number=num_lines_before, end=end
        )
        return documents, lambda line: line.end_offset - offset
    stream = _skip_to(_decompressed(file, raw), offset)
    lines = _lines_of(file, stream, offset, num_lines_before, end, options)
    if file.compression is None:
        return lines, lambda line: line.end_offset - offset
    begun = raw.tell()
    # pyarrow closes the file at its end.
    return lines, lambda _: (file.num_bytes if raw.closed else raw.tell()) - begun


def _lines_of(
    file: InputFile, stream: io.BufferedReader, offset: int, number: int, end: int | None, options: ReadingOptions
) -> Iterator[RawLine | LineBlock]:
    """The lines of plain text or of JSON."""
    max_bytes = options.max_document_bytes
    if file.format == "text" and not options.split_text_files:
        return _whole_text(stream, offset, number, max_bytes)
    if file.format == "jsonl" and options.whole_records and begins_list(stream):
        return list_items(stream, max_bytes)

    def read_lines(stream: io.BufferedReader, offset: int, number: int) -> Iterator[RawLine]:
        return _lines(stream, offset, number, end, max_bytes)

    if file.format == "text":
        return _paragraphs(read_lines(stream, offset, number), max_bytes)
    return read_line_blocks(stream, offset, number, end, max_bytes, read_lines)


def _decompressed(file: InputFile, raw: BinaryIO) -> io.BufferedReader:
    stream: Any = raw if file.compression is None else DECOMPRESSORS[file.compression](raw)
    return io.BufferedReader(stream, READ_BUFFER_BYTES)


def _skip_to(stream: io.BufferedReader, offset: int) -> io.BufferedReader:
    """Move to `offset` of the decompressed bytes; read up to there if the stream cannot seek."""
    if offset and stream.seekable():
        stream.seek(offset)
        return stream
    while offset > 0 and (content := stream.read(min(offset, READ_BUFFER_BYTES))):
        offset -= len(content)
    return stream


def _lines(stream: BinaryIO, offset: int, number: int, end: int | None, max_bytes: int) -> Iterator[RawLine]:
    following = None  # the line after blank ones, which is read to know that it is not blank
    while end is None or offset < end:
        content = stream.readline(max_bytes + 1) if following is None else following
        if not content:
            return
        following, num_lines, num_bytes, is_too_large = None, 1, len(content), False
        if num_bytes <= max_bytes and not content.isspace():  # nearly all are so
            number, offset = number + 1, offset + num_bytes
            line = [RawLine(number, offset - num_bytes, number, offset, num_bytes, content)]
            content = b""  # so that whoever takes the line can free it
            yield line.pop()
            continue
        if _is_blank(content, max_bytes):
            most = min(BLANK_BYTES, max_bytes, BLANK_BYTES if end is None else end - offset)
            num_lines, num_bytes, following = _blank_lines(stream, num_bytes, most, max_bytes)
        elif num_bytes > max_bytes and not content.endswith(b"\n"):
            is_too_large = True
            num_bytes += _skip_line(stream)
        end_line, end_offset = number + num_lines, offset + num_bytes
        shown = (None, content[:SHOWN_BYTES]) if is_too_large else (content, b"")
        yield RawLine(number + 1, offset, end_line, end_offset, num_bytes, *shown)
        number, offset = end_line, end_offset


def _is_blank(content: bytes, max_bytes: int) -> bool:
    return content.isspace() and (content.endswith(b"\n") or len(content) <= max_bytes)


def _blank_lines(stream: BinaryIO, num_bytes: int, most: int, max_bytes: int) -> tuple[int, int, bytes | None]:
    """Read blank lines, after one of `num_bytes`, until there are `most` bytes of them.

    Returns the numbers of lines and bytes, and the line after them if it was read. A billion lines take 1 s. Where the
    buffer ends has no effect: readers that start elsewhere give the same lines.
    """
    num_lines = 1
    while num_bytes < most:
        ahead = stream.peek()[: most - num_bytes]  # type: ignore[attr-defined]
        blank = ahead[: len(ahead) - len(ahead.lstrip())]
        blank = stream.read(blank.rfind(b"\n") + 1)
        num_lines, num_bytes = num_lines + blank.count(b"\n"), num_bytes + len(blank)
        if num_bytes < most:
            content = stream.readline(max_bytes + 1)
            if not content or not _is_blank(content, max_bytes):
                return num_lines, num_bytes, content
            num_lines, num_bytes = num_lines + 1, num_bytes + len(content)
    return num_lines, num_bytes, None


def _skip_line(stream: BinaryIO) -> int:
    """Read to the end of a line; the number of bytes."""
    num_bytes = 0
    while content := stream.readline(READ_BUFFER_BYTES):
        num_bytes += len(content)
        if content.endswith(b"\n"):
            break
    return num_bytes


def _whole_text(stream: BinaryIO, offset: int, number: int, max_bytes: int) -> Iterator[RawLine]:
    """The complete file as one line."""
    content = stream.read(max_bytes + 1)
    if not content:
        return
    num_bytes, num_newlines, last = len(content), content.count(b"\n"), content
    while more := stream.read(READ_BUFFER_BYTES):
        num_bytes, num_newlines, last = num_bytes + len(more), num_newlines + more.count(b"\n"), more
    end_line = number + num_newlines + (not last.endswith(b"\n"))
    shown = (content, b"") if num_bytes <= max_bytes else (None, content[:SHOWN_BYTES])
    yield RawLine(number + 1, offset, end_line, offset + num_bytes, num_bytes, *shown)


def _paragraphs(lines: Iterator[RawLine], max_bytes: int) -> Iterator[RawLine]:
    """Join the lines between blank ones."""
    runs = itertools.groupby(lines, lambda line: isinstance(line.content, bytes) and line.content.isspace())
    yield from (_joined(run, max_bytes) for is_blank, run in runs if not is_blank)


def _joined(lines: Iterator[RawLine], max_bytes: int) -> RawLine:
    """Consecutive lines as one, without content if they are too large together."""
    first = last = next(lines)
    head, num_bytes = first.head, 0
    joined = bytearray()  # a list of parts takes 40 bytes for each line, however short
    for last in itertools.chain([first], lines):
        num_bytes += last.num_bytes
        if num_bytes > max_bytes or not isinstance(last.content, bytes):
            num_bytes = max(num_bytes, max_bytes + 1)
            joined.clear()
        else:
            head = head or last.content[:SHOWN_BYTES]
            joined += last.content
    content = None if num_bytes > max_bytes else bytes(joined)
    size = last.end_offset - first.byte_offset
    return RawLine(first.number, first.byte_offset, last.end_line, last.end_offset, size, content, head)
