"""Read JSON lines many at a time, with one object for thousands of them."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pretraining.data.input.documents import LINE_MEMORY_BYTES, RawLine
from pretraining.data.input.json.strings import PADDING_BYTES

READ_BUFFER_BYTES = 1 << 20  # twice as fast as 4 MB, which no cache of a processor holds
NEWLINE = 0x0A
# Bytes by which a line of whitespace can begin; a line that begins so is read alone.
IS_SPACE = np.array([bytes([byte]).isspace() for byte in range(256)])
ReadLines = Callable[[io.BufferedReader, int, int], Iterator[RawLine]]


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Consecutive lines, none of them blank or too large: line n is `data[bounds[n] : bounds[n + 1]]`.

    PADDING_BYTES follow the last line. `number` lines and `byte_offset` bytes precede the first one in the file.
    """

    data: np.ndarray
    bounds: np.ndarray
    number: int
    byte_offset: int

    @property
    def num_bytes(self) -> int:
        """The size of all lines."""
        return int(self.bounds[-1] - self.bounds[0])

    @property
    def end_line(self) -> int:
        """Lines of the file up to the last one."""
        return self.number + len(self.bounds) - 1

    @property
    def end_offset(self) -> int:
        """Bytes of the file up to the end of the last line."""
        return self.byte_offset + self.num_bytes

    @property
    def memory_bytes(self) -> int:
        """The same as of its lines, one by one."""
        return self.num_bytes + LINE_MEMORY_BYTES * (len(self.bounds) - 1)

    def line(self, index: int) -> RawLine:
        """One of the lines, from 0 on."""
        begin, end = int(self.bounds[index]), int(self.bounds[index + 1])
        offset, number = self.byte_offset - int(self.bounds[0]), self.number + index + 1
        return RawLine(number, offset + begin, number, offset + end, end - begin, self.data[begin:end].tobytes())

    def lines(self) -> Iterator[RawLine]:
        """All lines."""
        return map(self.line, range(len(self.bounds) - 1))

    def divided(self, memory_bytes: int) -> "tuple[LineBlock, LineBlock | None]":
        """The lines up to the one that reaches this size in memory, and the rest."""
        memory = self.bounds[1:] - self.bounds[0] + LINE_MEMORY_BYTES * np.arange(1, len(self.bounds))
        last = int(np.searchsorted(memory, memory_bytes)) + 1
        if last >= len(self.bounds) - 1:
            return self, None
        first = replace(self, bounds=self.bounds[: last + 1])
        rest = replace(self, bounds=self.bounds[last:], number=first.end_line, byte_offset=first.end_offset)
        return first, rest


class _Source(io.RawIOBase):
    """A stream into which bytes can be put back, as those of a line that has not ended yet."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._ahead = stream.peek()
        self._raw: Any = stream.detach()

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, target: Any) -> int:
        """Read up to `len(target)` bytes; 0 at the end."""
        if not self._ahead:
            return int(self._raw.readinto(target))
        size = min(len(target), len(self._ahead))
        target[:size] = self._ahead[:size]
        self._ahead = self._ahead[size:]
        return size

    def read_block(self) -> tuple[np.ndarray, int]:
        """About READ_BUFFER_BYTES bytes, their number, and space for PADDING_BYTES more; copied once on their way.

        What was put back comes alone if a line ends in it: an error of the stream behind is one of the next block.
        """
        data = np.empty(max(READ_BUFFER_BYTES, 2 * len(self._ahead)) + PADDING_BYTES, np.uint8)
        size, has_line = len(self._ahead), b"\n" in self._ahead
        data[:size] = np.frombuffer(self._ahead, np.uint8)
        self._ahead = b""
        return data, size if has_line else size + self.readinto(data[size:-PADDING_BYTES].data)

    def put_back(self, content: bytes) -> None:
        """Have these bytes read again, before all others."""
        self._ahead = content + self._ahead


def read_line_blocks(
    stream: io.BufferedReader, offset: int, number: int, end: int | None, max_bytes: int, read_lines: ReadLines
) -> Iterator[LineBlock | RawLine]:
    """Read the lines that begin before `end`, those of a block together if each is a usual one.

    Otherwise `read_lines`, which gets a stream, offset and number, reads one after the other up to one that is not
    blank: so where the block ends has no effect on which blank lines are one.
    """
    source = _Source(stream)
    while end is None or offset < end:
        data, size = source.read_block()
        bounds, is_usual = _lines_in(data[:size], None if end is None else end - offset, max_bytes)
        if is_usual:
            source.put_back(data[bounds[-1] : size].tobytes())
            block = LineBlock(data, bounds, number, offset)
            offset, number = block.end_offset, block.end_line
            yield block
            continue
        source.put_back(data[:size].tobytes())
        del data  # a line of 200 MB needs the memory
        stream = io.BufferedReader(source, READ_BUFFER_BYTES)
        before, target = offset, offset + int(bounds[-1])
        for line in read_lines(stream, offset, number):
            offset, number = line.end_offset, line.end_line
            is_blank = line.content is not None and bytes(line.content).isspace()  # type: ignore[arg-type]
            yield line
            del line
            if offset >= target and not is_blank:
                break
        if offset == before:
            return
        source.put_back(stream.peek())
        stream.detach()


def _lines_in(data: np.ndarray, limit: int | None, max_bytes: int) -> tuple[np.ndarray, bool]:
    """Where complete lines begin and end that begin before `limit`, and whether each is a usual one."""
    ends = np.flatnonzero(data == NEWLINE) + 1
    bounds = np.concatenate([[0], ends])
    if limit is not None:
        bounds = bounds[: int(np.searchsorted(bounds[:-1], limit)) + 1]
    starts = bounds[:-1]
    is_usual = len(starts) > 0 and int(np.diff(bounds).max()) <= max_bytes and not IS_SPACE[data[starts]].any()
    return bounds, is_usual
