import contextlib
import errno
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretraining.data.encode.encoded import DocumentMetadata
from pretraining.data.store.blocks import divide_blocks
from pretraining.data.store.shards import (
    ShardThreads,
    ShardWriter,
    block_schema,
    block_table,
    document_table,
    without_nulls,
)
from pretraining.system.files import sha256_of
from tests.unit.data.store.test_blocks import some_blocks

SCHEMA = block_schema(8, "uint16")


@pytest.fixture
def threads() -> Iterator[ShardThreads]:
    with contextlib.closing(ShardThreads()) as threads:
        yield threads


def some_documents(first: int) -> pa.Table:
    numbers = np.arange(first, first + 3)
    rows = DocumentMetadata(["a", "é", "a"], numbers, numbers, numbers, np.array([0, 2, 1]))
    return document_table([rows], ["news.jsonl"], numbers, numbers)


def test_blocks_are_appended_in_order_and_the_shard_has_their_hash(tmp_path: Path, threads: ShardThreads) -> None:
    blocks = some_blocks()
    parts = list(divide_blocks(blocks, 16))
    assert len(parts) == 12, "more than are flushed at once"
    writer = ShardWriter(tmp_path, "train.parquet", threads)
    for part in parts:
        writer.write(partial(block_table, [part], SCHEMA))
    (shard,) = writer.close()
    path = tmp_path / "train.parquet"
    assert (shard.path, shard.num_rows) == (path.name, len(blocks.input_ids))
    assert (shard.num_bytes, shard.sha256) == (path.stat().st_size, sha256_of(path))
    assert pq.ParquetFile(path).num_row_groups == len(parts)
    found = pq.read_table(path)
    assert found.equals(block_table([blocks], SCHEMA).cast(found.schema))
    assert found.schema.equals(pq.ParquetFile(path).schema_arrow)
    assert pa.schema(found.schema).remove_metadata() == without_nulls(SCHEMA)


def test_documents_have_the_statistics_that_look_them_up(tmp_path: Path, threads: ShardThreads) -> None:
    writer = ShardWriter(tmp_path, "documents.parquet", threads)
    for first in (5, 8, 11):
        writer.write(partial(some_documents, first))
    (shard,) = writer.close()
    path = tmp_path / "documents.parquet"
    assert (shard.num_rows, shard.num_bytes, shard.sha256) == (9, path.stat().st_size, sha256_of(path))
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(group).column(0).statistics.min for group in range(3)] == [5, 8, 11]
    assert pq.read_table(path).equals(pa.concat_tables(map(some_documents, (5, 8, 11))))


def test_without_rows_there_is_no_file(tmp_path: Path, threads: ShardThreads) -> None:
    assert ShardWriter(tmp_path, "train.parquet", threads).close() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make_table", [partial(block_table, [some_blocks()], SCHEMA), partial(some_documents, 0)])
@pytest.mark.parametrize(("path", "number"), [("full", errno.ENOSPC), ("missing/train.parquet", errno.ENOENT)])
def test_what_the_disk_does_not_take_is_an_error_with_its_number(
    make_table: partial[pa.Table], path: str, number: int, threads: ShardThreads
) -> None:
    writer = ShardWriter(Path("/dev"), path, threads)
    writer.write(make_table)
    with pytest.raises(OSError, match=r"No (space left|such file)") as found:
        writer.close()
    assert found.value.errno == number
