"""Pages of Parquet from NumPy arrays: levels, then numbers, plain or as streams of their bytes.

Specification: github.com/apache/parquet-format, Encodings.md (PLAIN, RLE and BYTE_STREAM_SPLIT) and README.md (data
pages, nested encoding).
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pretraining.data.store.parquet.metadata import PLAIN, element_field, encoding, physical_bits
from pretraining.data.store.parquet.thrift import varint

PAGE_BYTES = 1 << 20  # of numbers, before compression; as those of pyarrow


class PageMaker:
    """Makes the pages of one column, a row group at a time."""

    def __init__(self, field: pa.Field) -> None:
        element = element_field(field)
        self._num_physical_bytes = physical_bits(field) // 8
        self._is_plain = encoding(field) == PLAIN
        self._is_list = element is not field
        self._list_size = field.type.list_size if pa.types.is_fixed_size_list(field.type) else None
        # How many of the optional and repeated fields exist: of an empty list, and of a number.
        self._empty_level = int(field.nullable)
        self._full_level = self._empty_level + (1 + int(element.nullable) if self._is_list else 0)

    def pages(self, column: pa.Array) -> Iterator[tuple[int, np.ndarray]]:
        """The pages of a column without nulls: the number of levels, and the bytes, uint8.

        A page has whole rows, and at least one.
        """
        values, bounds = _values_and_bounds(column)
        num_pages = -(-len(values) * self._num_physical_bytes // PAGE_BYTES)
        num_rows = -(-len(column) // max(1, num_pages))
        for first in range(0, len(column), num_rows):
            of_page = bounds[first : first + num_rows + 1]
            sizes = np.diff(of_page)
            levels = self._repetition_levels(sizes) + self._definition_levels(sizes)
            yield int(np.maximum(sizes, 1).sum()), self._page(levels, values[of_page[0] : of_page[-1]])

    def _repetition_levels(self, sizes: np.ndarray) -> bytes:
        """Level 0 where a row begins, and 1 at its other numbers; an empty list has the level 0, too."""
        if not self._is_list:
            return b""
        if self._list_size:  # reading is 5 % faster than of packed bits
            return _with_length((_run(0, 1) + _run(1, self._list_size - 1)) * len(sizes))
        levels = np.ones(np.maximum(sizes, 1).sum(), np.uint8)
        levels[_first_levels(sizes)] = 0
        return _with_length(_packed(levels, 1))

    def _definition_levels(self, sizes: np.ndarray) -> bytes:
        if self._full_level == 0:
            return b""
        if sizes.all():
            return _with_length(_run(self._full_level, sizes.sum()))
        levels = np.full(np.maximum(sizes, 1).sum(), self._full_level, np.uint8)
        levels[_first_levels(sizes)[sizes == 0]] = self._empty_level
        return _with_length(_packed(levels, self._full_level.bit_length()))

    def _page(self, levels: bytes, values: np.ndarray) -> np.ndarray:
        """The levels, then the numbers; or as streams byte 0 of each number, byte 1 of each, to the last byte."""
        page = np.zeros(len(levels) + self._num_physical_bytes * len(values), np.uint8)
        page[: len(levels)] = np.frombuffer(levels, np.uint8)
        shape = (self._num_physical_bytes, len(values))
        numbers = page[len(levels) :]
        streams = numbers.reshape(shape[::-1]).T if self._is_plain else numbers.reshape(shape)
        for number in range(values.itemsize):  # the bytes by which a number is widened stay zero
            streams[number] = values >> 8 * number
        return page


def _values_and_bounds(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """All numbers of a column, and where each row begins and ends in them; int64 [rows + 1]."""
    assert not column.null_count, "nulls need other levels"
    if pa.types.is_list(column.type):
        return np.from_dlpack(column.values), np.from_dlpack(column.offsets)
    if pa.types.is_fixed_size_list(column.type):
        return np.from_dlpack(column.flatten()), column.type.list_size * np.arange(len(column) + 1)
    return np.from_dlpack(column), np.arange(len(column) + 1)


def _first_levels(sizes: np.ndarray) -> np.ndarray:
    """The place of each row's first level."""
    counts = np.maximum(sizes, 1)
    return np.cumsum(counts) - counts


def _run(level: int, length: int) -> bytes:
    """A level `length` times, in the hybrid of run lengths and packed bits."""
    return varint(int(length) << 1) + bytes([level]) if length else b""


def _packed(levels: np.ndarray, width: int) -> bytes:
    """Levels, uint8, of `width` bits each, as packed bits of the hybrid: in groups of 8, the last with zeros."""
    bits = levels[:, None] >> np.arange(width, dtype=np.uint8) & 1
    num_groups = -(-len(levels) // 8)
    packed = np.packbits(bits, bitorder="little").tobytes()
    return varint(num_groups << 1 | 1) + packed.ljust(num_groups * width, b"\0")


def _with_length(levels: bytes) -> bytes:
    return len(levels).to_bytes(4, "little") + levels
