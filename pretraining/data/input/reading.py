"""Read the lines of the input in batches of about 2 MB, from any position, in bounded memory.

Every byte is read here, so that every line is accounted for. Batches depend only on the input and the start position:
a reader that resumes after a batch gives the same batches.
"""

import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pretraining.data.input.documents import (
    Document,
    ExpandsTooFarError,
    RawLine,
    ReadingOptions,
    SkippedLine,
    parse_ids,
    parse_json_line,
    parse_row,
    parse_text,
    skipped,
)
from pretraining.data.input.files import InputFile
from pretraining.data.input.formats import open_file, open_lines
from pretraining.data.input.line_blocks import LineBlock
from pretraining.data.input.slices import FileRange, cut_slices
from pretraining.errors import UserError

BATCH_BYTES = 2 << 20  # part of the format: where a shard ends depends on it
ENOUGH_LINES = 1 << 22  # consecutive lines without a document: 20 s of work; a decompression bomb can take days
PARSERS = {"jsonl": parse_json_line, "parquet": parse_row, "text": parse_text, "tokens": parse_ids}
UNITS = {"parquet": "row", "tokens": "document"}
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile, pa.ArrowException)


@dataclass(frozen=True, slots=True)
class Position:
    """Where to resume reading: number of the range in its slice, byte offset (row, in Parquet) and lines before it."""

    range_number: int
    byte_offset: int
    num_lines: int


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Lines of one file, the position after them, and their bytes: in the file (compressed), and in memory.

    Lines are in `parts`, one by one or many together.
    """

    file: InputFile
    file_number: int
    parts: list[RawLine | LineBlock]
    end: Position
    num_file_bytes: int
    memory_bytes: int

    @property
    def lines(self) -> Iterator[RawLine]:
        """All lines, one by one."""
        for part in self.parts:
            if isinstance(part, LineBlock):
                yield from part.lines()
            else:
                yield part


def read_batches(
    files: Sequence[InputFile], ranges: Sequence[FileRange], start: Position | None, options: ReadingOptions
) -> Iterator[RawBatch]:
    """Read the lines of `ranges` in order, from `start` on.

    Raises:
        UserError: when a file is damaged or cannot be read, with the place.
    """
    first = 0 if start is None else start.range_number
    for number, file_range in enumerate(ranges[first:], first):
        begin = Position(number, file_range.start, file_range.first_line - 1)
        begin = start if start is not None and number == first else begin
        yield from _read_range(files[file_range.file_number], file_range, begin, options)


def parse_lines(batch: RawBatch, options: ReadingOptions) -> Iterator[tuple[RawLine, Document | SkippedLine]]:
    """Parse each line of the batch.

    Raises:
        UserError: when a file of token ids was made with another tokenizer.
    """
    parse = PARSERS[batch.file.format]
    try:
        for raw in batch.lines:
            yield raw, skipped(raw, "too_large") if raw.content is None else parse(raw, options)
    except UserError as error:
        raise UserError(f"--data_files {batch.file.path}: {error}") from None


def read_documents(
    files: Sequence[InputFile], options: ReadingOptions, advance: Callable[[int], None] = lambda _: None
) -> Iterator[Document | SkippedLine]:
    """Read every line of `files`, in order; `advance` is called with the bytes in the file of each batch.

    Raises:
        UserError: also when too many consecutive lines are not documents.
    """
    (ranges,) = cut_slices(files, 1)
    num_skipped = 0  # since the last document
    for batch in read_batches(files, ranges, None, options):
        advance(batch.num_file_bytes)
        for _, parsed in parse_lines(batch, options):
            num_skipped = 0 if isinstance(parsed, Document) else num_skipped + parsed.num_lines
            yield parsed
        if num_skipped > ENOUGH_LINES:
            raise UserError(
                f"--data_files {batch.file.path}: no document in {num_skipped:,} consecutive lines up to line "
                f"{batch.end.num_lines:,}; use the right --text_field, or remove the file"
            )


def _read_range(file: InputFile, file_range: FileRange, begin: Position, options: ReadingOptions) -> Iterator[RawBatch]:
    batch: list[RawLine | LineBlock] = []
    memory_bytes = file_bytes = 0
    position, part = begin, None
    try:
        with open_file(file) as raw:
            parts, bytes_read = open_lines(
                file,
                raw,
                offset=begin.byte_offset,
                num_lines_before=begin.num_lines,
                end=file_range.end,
                options=options,
            )
            for part in parts:
                rest: RawLine | LineBlock | None = part
                while rest is not None:
                    part, rest = _divided(rest, BATCH_BYTES - memory_bytes)
                    batch.append(part)
                    memory_bytes += part.memory_bytes
                    if memory_bytes >= BATCH_BYTES:
                        before, file_bytes = file_bytes, bytes_read(part)
                        position, part = _position_after(part, position), None  # it can be freed while this waits
                        yield RawBatch(file, file_range.file_number, batch, position, file_bytes - before, memory_bytes)
                        batch, memory_bytes = [], 0
            if batch:
                num_file_bytes = bytes_read(batch[-1]) - file_bytes
                position, part = _position_after(part, position), None
                yield RawBatch(file, file_range.file_number, batch, position, num_file_bytes, memory_bytes)
    except Exception as error:
        problem = _problem(file, _position_after(part, position), error)
        if problem is None:
            raise
        raise UserError(f"--data_files {file.path}: {problem}") from None


def _divided(part: RawLine | LineBlock, memory_bytes: int) -> tuple[RawLine | LineBlock, LineBlock | None]:
    """The lines of a part up to the one that reaches this size in memory, and the rest."""
    return part.divided(memory_bytes) if isinstance(part, LineBlock) else (part, None)


def _position_after(part: RawLine | LineBlock | None, position: Position) -> Position:
    """The position after `part`, which is behind `position` in the same range."""
    return position if part is None else Position(position.range_number, part.end_offset, part.end_line)


def _problem(file: InputFile, position: Position, error: Exception) -> str | None:
    """What is wrong with the input; None if the error has another cause."""
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    unit = UNITS.get(file.format, "line")
    place = f"after {unit} {position.num_lines:,}"
    if isinstance(error, ExpandsTooFarError) or "too much memory" in reason:  # zstd, of a window > 128 MB
        return f"reading stopped {place}: it expands more than text does ({reason}); compress it again, or remove it"
    is_damage = isinstance(error, DAMAGE)
    if file.is_remote and not is_damage:  # whatever the Hub's client raises after its retries
        return f"the Hub failed ({reason}); run the same command again to resume from the last finished shard"
    if is_damage or (isinstance(error, OSError) and error.errno is None):  # pyarrow reports damage like this, too
        return f"is truncated or corrupt {place} ({reason}); download the file again, or remove it"
    return f"cannot be read ({error.strerror}); check the disk" if isinstance(error, OSError) else None
