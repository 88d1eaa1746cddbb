"""Read JSON lines many at a time, with one object for thousands of them."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from pretraining.data.input.documents import LINE_MEMORY_BYTES, RawLine
from pretraining.data.input.json.strings import PADDING_BYTES

NEWLINE = 0x0A
# Bytes by which a line of whitespace can begin; a line that begins so is read alone.
IS_SPACE = np.array([bytes([byte]).isspace() for byte in range(256)])
ReadLines = Callable[[int, int], Iterator[RawLine]]


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Consecutive lines, none of them blank or too large: line n is `data[bounds[n] : bounds[n + 1]]`.

    PADDING_BYTES follow the last line. `number` lines and `byte_offset` bytes precede the first one in the file.
    """

    data: bytes
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
        return RawLine(number, offset + begin, number, offset + end, end - begin, self.data[begin:end])

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


def read_line_blocks(
    stream: io.BufferedReader, offset: int, number: int, end: int | None, max_bytes: int, read_lines: ReadLines
) -> Iterator[LineBlock | RawLine]:
    """Read the lines that begin before `end`, those in the buffer together if each is a usual one.

    Otherwise `read_lines`, which gets offset and number, reads one after the other up to one that is not blank: so
    where the buffer ends has no effect on which blank lines are one.
    """
    while end is None or offset < end:
        bounds, is_usual = _lines_in_buffer(stream, None if end is None else end - offset, max_bytes)
        if is_usual:
            data = b"".join([stream.read(int(bounds[-1])), bytes(PADDING_BYTES)])
            block = LineBlock(data, bounds, number, offset)
            offset, number = block.end_offset, block.end_line
            yield block
            continue
        before, target = offset, offset + int(bounds[-1])
        for line in read_lines(offset, number):
            offset, number = line.end_offset, line.end_line
            is_blank = line.content is not None and bytes(line.content).isspace()  # type: ignore[arg-type]
            yield line
            del line
            if offset >= target and not is_blank:
                break
        if offset == before:
            return


def _lines_in_buffer(stream: io.BufferedReader, limit: int | None, max_bytes: int) -> tuple[np.ndarray, bool]:
    """Where complete lines in the buffer begin and end that begin before `limit`, and whether each is a usual one."""
    data = np.frombuffer(stream.peek(), np.uint8)
    ends = np.flatnonzero(data == NEWLINE) + 1
    bounds = np.concatenate([[0], ends])
    if limit is not None:
        bounds = bounds[: int(np.searchsorted(bounds[:-1], limit)) + 1]
    starts = bounds[:-1]
    is_usual = len(starts) > 0 and int(np.diff(bounds).max()) <= max_bytes and not IS_SPACE[data[starts]].any()
    return bounds, is_usual
