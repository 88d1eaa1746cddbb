"""Thrift's compact protocol, as far as Parquet's metadata needs it to be written.

Specification: github.com/apache/thrift, doc/specs/thrift-compact-protocol.md. A value is its type with its bytes, so
that a structure is written as the numbers of its fields and their values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Value:
    """The type as in the header of a field, and the bytes after that header."""

    type_code: int
    content: bytes


def varint(number: int) -> bytes:
    """A number from 0 on in groups of 7 bits, the lowest first (ULEB128).

    >>> varint(300).hex()
    'ac02'
    """
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])


def _zigzag(number: int) -> bytes:
    return varint(2 * number if number >= 0 else -2 * number - 1)


def boolean(value: bool) -> Value:
    """A bool as a field, whose type is its value."""
    return Value(1 if value else 2, b"")


def i8(number: int) -> Value:
    """An integer of 8 bits."""
    return Value(3, number.to_bytes(1, "little", signed=True))


def i32(number: int) -> Value:
    """An integer of 32 bits, also for the values of an enum."""
    return Value(5, _zigzag(number))


def i64(number: int) -> Value:
    """An integer of 64 bits."""
    return Value(6, _zigzag(number))


def string(value: str) -> Value:
    """A text, in UTF-8."""
    encoded = value.encode()
    return Value(8, varint(len(encoded)) + encoded)


def array(items: Sequence[Value]) -> Value:
    """A list of at least one value, all of one type other than bool."""
    (type_code,) = {item.type_code for item in items}
    size = bytes([len(items) << 4 | type_code]) if len(items) < 15 else bytes([0xF0 | type_code]) + varint(len(items))
    return Value(9, size + b"".join(item.content for item in items))


def struct(fields: Mapping[int, Value]) -> Value:
    """A structure: values by the number of their field, in ascending order and less than 16 apart."""
    parts, before = [], 0
    for number, value in fields.items():
        parts.append(bytes([number - before << 4 | value.type_code]) + value.content)
        before = number
    return Value(12, b"".join(parts) + b"\0")
