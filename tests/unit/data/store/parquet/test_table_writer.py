"""The files are those of pyarrow to every reader: the same values, types and metadata."""

import io
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from pretraining.data.store.blocks import Blocks
from pretraining.data.store.parquet.table_writer import TableWriter
from pretraining.data.store.shards import ANSWER_BIT, block_schema, block_table
from pretraining.system.files import HashedFile, sha256_of


def random_blocks(draw: np.random.Generator, num_blocks: int, block_length: int, dtype: str) -> Blocks:
    """Blocks with any ids; some of them have no piece."""
    sizes = draw.integers(0, 4, num_blocks)
    num_pieces = sizes.sum()
    return Blocks(
        input_ids=draw.integers(0, np.iinfo(dtype).max, (num_blocks, block_length), dtype, endpoint=True),
        piece_bounds=np.concatenate([[0], np.cumsum(sizes)]),
        document_starts=draw.integers(0, block_length, num_pieces),
        document_ids=draw.integers(0, 1 << 62, num_pieces),
        document_offsets=draw.integers(-1, 1 << 40, num_pieces),
        num_padding_tokens=draw.integers(0, block_length, num_blocks),
    )


def tables(num_blocks: int, block_length: int, dtype: str, *, has_answers: bool = False) -> list[pa.Table]:
    draw = np.random.default_rng([num_blocks, block_length])
    schema = block_schema(block_length, dtype, has_answers=has_answers)
    return [block_table([random_blocks(draw, num_blocks, block_length, dtype)] * 2, schema) for _ in range(3)]


def write(path: Path, groups: Sequence[pa.Table]) -> Path:
    writer = TableWriter(file := HashedFile(path), groups[0].schema)
    for table in groups:
        writer.write_table(table)
    writer.close()
    file.close()
    assert (file.num_bytes, file.sha256) == (path.stat().st_size, sha256_of(path))
    return path


def of_pyarrow(groups: Sequence[pa.Table]) -> pq.ParquetFile:
    with pq.ParquetWriter(content := io.BytesIO(), groups[0].schema, compression="zstd") as writer:
        for table in groups:
            writer.write_table(table)
    return pq.ParquetFile(content)


SHAPES = [
    (num_blocks, block_length, dtype, has_answers)
    for num_blocks, block_length in [(1, 1), (1, 7), (5, 8), (40, 9), (200, 64), (3, 4096), (1, 300_000), (30_000, 2)]
    for dtype, has_answers in [("uint16", False), ("uint32", False), ("uint32", True)]
]


@pytest.mark.parametrize(("num_blocks", "block_length", "dtype", "has_answers"), SHAPES)
def test_readers_find_what_pyarrow_would_have_written(
    num_blocks: int, block_length: int, dtype: str, has_answers: bool, tmp_path: Path
) -> None:
    groups = tables(num_blocks, block_length, dtype, has_answers=has_answers)
    own, theirs = pq.ParquetFile(write(tmp_path / "own.parquet", groups)), of_pyarrow(groups)
    assert own.schema.equals(theirs.schema)
    assert own.schema_arrow.equals(theirs.schema_arrow, check_metadata=True)
    assert own.metadata.metadata == theirs.metadata.metadata
    assert own.num_row_groups == theirs.num_row_groups == len(groups)
    for number, table in enumerate(groups):
        found = own.read_row_group(number)
        found.validate(full=True)
        assert found.equals(table)
        for column in range(table.num_columns):
            chunks = [file.metadata.row_group(number).column(column) for file in (own, theirs)]
            assert len({(chunk.num_values, chunk.path_in_schema, chunk.physical_type) for chunk in chunks}) == 1


def test_answers_are_marked_and_their_ids_are_without_the_mark(tmp_path: Path) -> None:
    blocks = random_blocks(np.random.default_rng(0), 4, 16, "uint32")
    path = write(tmp_path / "own.parquet", [block_table([blocks], block_schema(16, "uint32", has_answers=True))])
    rows = pq.read_table(path)
    assert np.array_equal(np.array(rows["is_answer"].to_pylist(), bool), blocks.input_ids >= ANSWER_BIT)
    assert np.array_equal(rows["input_ids"].to_pylist(), blocks.input_ids % ANSWER_BIT)


def test_datasets_finds_the_same_whole_and_streamed(tmp_path: Path) -> None:
    groups = tables(20, 64, "uint16")
    path = str(write(tmp_path / "own.parquet", groups))
    expected = pa.concat_tables(groups).to_pylist()
    whole = load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    streamed = load_dataset("parquet", data_files=path, split="train", streaming=True)
    assert isinstance(whole, Dataset)
    assert whole.to_list() == list(streamed) == expected
    assert str(whole.features["input_ids"]) == "List(Value('uint16'), length=64)"


def test_batches_and_single_columns_are_read_as_of_any_file(tmp_path: Path) -> None:
    groups = tables(200, 2048, "uint16")
    file = pq.ParquetFile(write(tmp_path / "own.parquet", groups))
    ids = [batch.column(0).flatten() for batch in file.iter_batches(7, columns=["input_ids"], use_threads=False)]
    assert np.array_equal(np.concatenate(ids), pa.concat_tables(groups)["input_ids"].combine_chunks().flatten())


def test_a_part_of_a_table_is_written_alone(tmp_path: Path) -> None:
    (whole, *_) = tables(10, 8, "uint32", has_answers=True)
    assert pq.read_table(write(tmp_path / "own.parquet", [whole.slice(3, 9)])).equals(whole.slice(3, 9))


def test_memory_is_that_of_pages(tmp_path: Path) -> None:
    (table, *_) = tables(512, 4096, "uint16")
    writer = TableWriter(HashedFile(tmp_path / "own.parquet"), table.schema)
    tracemalloc.start()
    writer.write_table(table)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20, "of 16 MB of numbers: two pages"
