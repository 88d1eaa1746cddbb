import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretraining.data.store.parquet.metadata import ColumnChunk, RowGroup, footer, page_header

NO_ROWS = b"\x16\x00"  # the next field of the footer
IDS = pa.field("ids", pa.list_(pa.uint16(), 3))
NUMBERS = [pa.uint8(), pa.uint16(), pa.uint32(), pa.int32(), pa.int64()]


def metadata_of(end: bytes) -> pq.FileMetaData:
    return pq.read_metadata(io.BytesIO(b"PAR1" + end + len(end).to_bytes(4, "little") + b"PAR1"))


@pytest.mark.parametrize("nullable", [False, True])
@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_the_schema_is_that_of_pyarrow(number: pa.DataType, nullable: bool) -> None:
    element = pa.field("element", number, nullable=not nullable)
    types = [number, pa.list_(element), pa.list_(element, 7)]
    schema = pa.schema([pa.field(f"n{place}", each, nullable=nullable) for place, each in enumerate(types)])
    chunks = [ColumnChunk(field, 0, 4, 0, 0) for field in schema]
    own = metadata_of(end := footer(schema, [RowGroup(0, chunks)]))
    pq.write_table(schema.empty_table(), file := io.BytesIO())
    version_and_schema = end[: end.index(NO_ROWS)]  # with the types of earlier versions, which pyarrow does not show
    assert version_and_schema in file.getvalue()
    theirs = pq.read_metadata(file)
    assert own.schema.equals(theirs.schema)
    assert own.metadata == theirs.metadata
    assert own.schema.to_arrow_schema().equals(schema)
    assert own.format_version == theirs.format_version


def test_the_row_groups() -> None:
    groups = [RowGroup(n, [ColumnChunk(IDS, 3 * n, 1000 * n, 40 * n, 20 * n)]) for n in range(1, 21)]
    found = metadata_of(footer(pa.schema([IDS]), groups))
    assert (found.num_rows, found.num_row_groups, found.created_by) == (210, 20, "pretraining version 1 (build 1)")
    for number in range(1, 21):
        group = found.row_group(number - 1)
        chunk = group.column(0)
        assert (group.num_rows, group.total_byte_size) == (number, 40 * number)
        assert (chunk.num_values, chunk.data_page_offset) == (3 * number, 1000 * number)
        assert (chunk.total_uncompressed_size, chunk.total_compressed_size) == (40 * number, 20 * number)
        assert (chunk.path_in_schema, chunk.compression) == ("ids.list.element", "ZSTD")
        assert chunk.encodings == ("RLE", "BYTE_STREAM_SPLIT")


@pytest.mark.parametrize(("field", "encoding"), [(IDS, "1512"), (pa.field("n", pa.int64()), "1500")])
def test_the_header_of_a_page(field: pa.Field, encoding: str) -> None:
    of_data = "1506" + encoding + "1506" + "1506" + "00"
    assert page_header(field, 3, 64, 20).hex() == "1500" + "158001" + "1528" + "2c" + of_data + "00"
