"""Parquet's metadata: the schema, headers of pages, and the footer.

Specification: github.com/apache/parquet-format, src/main/thrift/parquet.thrift (whose numbers of fields and enums these
are) and LogicalTypes.md. There are no statistics: no reader of blocks asks which ids a page has.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pretraining.data.store.parquet.thrift import Value, array, boolean, i8, i32, i64, string, struct

CREATED_BY = "pretraining version 1 (build 1)"  # readers parse this form
FORMAT_VERSION = 2
INT32, INT64 = 1, 2
REQUIRED, OPTIONAL, REPEATED = 0, 1, 2
LIST = 3
UNSIGNED = {8: 11, 16: 12, 32: 13}  # converted types by number of bits
PLAIN, RLE, BYTE_STREAM_SPLIT = 0, 3, 9
ZSTD = 6  # with streams of bytes 1.1 to 1.5 bytes per token of news; snappy with a dictionary 1.6 to 1.9


@dataclass(frozen=True)
class ColumnChunk:
    """The pages of a column in a row group: the first one's place in the file, and their sizes with headers."""

    field: pa.Field
    num_values: int
    offset: int
    num_uncompressed_bytes: int
    num_bytes: int


@dataclass(frozen=True)
class RowGroup:
    """Its rows and columns."""

    num_rows: int
    columns: Sequence[ColumnChunk]


def element_field(field: pa.Field) -> pa.Field:
    """The field of the numbers: that of the elements in a column of lists."""
    is_list = pa.types.is_list(field.type) or pa.types.is_fixed_size_list(field.type)
    return field.type.value_field if is_list else field


def physical_bits(field: pa.Field) -> int:
    """The bits of a number in a file, where small ones are widened."""
    return max(32, element_field(field).type.bit_width)


def encoding(field: pa.Field) -> int:
    """Of numbers: streams of bytes for ids, plain for columns that programs without streams of integers can read."""
    return BYTE_STREAM_SPLIT if pa.types.is_fixed_size_list(field.type) else PLAIN


def _schema_elements(field: pa.Field) -> list[Value]:
    element = element_field(field)
    if element is field:
        return [_number(field, field.name)]
    outer = {3: i32(_repetition(field)), 4: string(field.name), 5: i32(1), 6: i32(LIST), 10: struct({3: struct({})})}
    inner = {3: i32(REPEATED), 4: string("list"), 5: i32(1)}
    return [struct(outer), struct(inner), _number(element, "element")]


def _number(field: pa.Field, name: str) -> Value:
    bits = field.type.bit_width
    element = {1: i32(_physical_type(field)), 3: i32(_repetition(field)), 4: string(name)}
    if pa.types.is_unsigned_integer(field.type):
        element |= {6: i32(UNSIGNED[bits]), 10: struct({10: struct({1: i8(bits), 2: boolean(False)})})}
    return struct(element)


def _physical_type(field: pa.Field) -> int:
    return {32: INT32, 64: INT64}[physical_bits(field)]


def _repetition(field: pa.Field) -> int:
    return OPTIONAL if field.nullable else REQUIRED


def page_header(field: pa.Field, num_values: int, num_uncompressed_bytes: int, num_bytes: int) -> bytes:
    """The header of a data page (version 1) of `num_values` levels."""
    data_page = struct({1: i32(num_values), 2: i32(encoding(field)), 3: i32(RLE), 4: i32(RLE)})
    return struct({1: i32(0), 2: i32(num_uncompressed_bytes), 3: i32(num_bytes), 5: data_page}).content


def _column(chunk: ColumnChunk) -> Value:
    field = chunk.field
    path = [field.name] if element_field(field) is field else [field.name, "list", "element"]
    metadata = {
        1: i32(_physical_type(field)),
        2: array([i32(RLE), i32(encoding(field))]),
        3: array([string(name) for name in path]),
        4: i32(ZSTD),
        5: i64(chunk.num_values),
        6: i64(chunk.num_uncompressed_bytes),
        7: i64(chunk.num_bytes),
        9: i64(chunk.offset),
    }
    return struct({2: i64(0), 3: struct(metadata)})


def _row_group(group: RowGroup) -> Value:
    num_uncompressed_bytes = sum(chunk.num_uncompressed_bytes for chunk in group.columns)
    columns = array([_column(chunk) for chunk in group.columns])
    return struct({1: columns, 2: i64(num_uncompressed_bytes), 3: i64(group.num_rows)})


def footer(schema: pa.Schema, groups: Sequence[RowGroup]) -> bytes:
    """What a file with at least one row group ends with, without its length."""
    root = struct({3: i32(REQUIRED), 4: string("schema"), 5: i32(len(schema))})
    elements = [element for field in schema for element in _schema_elements(field)]
    # pyarrow and `datasets` read the types of Arrow from this key: lists of a fixed size are none of Parquet's.
    arrow_schema = base64.b64encode(schema.serialize()).decode()
    metadata = {
        1: i32(FORMAT_VERSION),
        2: array([root, *elements]),
        3: i64(sum(group.num_rows for group in groups)),
        4: array([_row_group(group) for group in groups]),
        5: array([struct({1: string("ARROW:schema"), 2: string(arrow_schema)})]),
        6: string(CREATED_BY),
    }
    return struct(metadata).content
