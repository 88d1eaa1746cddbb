"""Parquet shards: written a row group at a time, then fsynced and hashed."""

from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pretraining.system.files import fsync, sha256_of

ID_COLUMN = "input_ids.list.element"


@dataclass(frozen=True)
class Shard:
    """One finished file: path in its folder, rows, size and hash."""

    path: str
    num_rows: int
    num_bytes: int
    sha256: str


def shard_path(prefix: str, number: int, count: int) -> str:
    """The path of a shard in a finished block store; `prefix` is documents/documents, or data/ and the split."""
    return f"{prefix}-{number:05d}-of-{count:05d}.parquet"


class ShardWriter:
    """Writes `root/path` in a thread of `executor`; without a row group no file is created."""

    def __init__(self, root: Path, path: str, schema: pa.Schema, executor: Executor) -> None:
        self._executor = executor
        self._writing: Future[None] | None = None
        self._root = root
        self._path = path
        self._schema = schema
        self._writer: pq.ParquetWriter | None = None
        self._num_rows = 0

    def write(self, table: pa.Table) -> None:
        """Append `table` as one row group, after the previous one is written.

        Raises:
            OSError: also when the previous one could not be written.
        """
        self._wait()
        self._num_rows += table.num_rows
        self._writing = self._executor.submit(self._write, table)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _write(self, table: pa.Table) -> None:
        if self._writer is None:
            has_ids = "input_ids" in self._schema.names
            # zstd with byte-stream split: 1.1 to 1.5 bytes per token of news; snappy with dictionary: 1.6 to 1.9.
            self._writer = pq.ParquetWriter(
                self._root / self._path,
                self._schema,
                compression="zstd",
                use_dictionary=["source", "file", "split"],
                column_encoding={ID_COLUMN: "BYTE_STREAM_SPLIT"} if has_ids else None,
            )
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))

    def close(self) -> list[Shard]:
        """Finish the file; the shard, if anything was written."""
        self._wait()
        if self._writer is None:
            return []
        self._writer.close()
        path = self._root / self._path
        fsync(path)
        return [Shard(self._path, self._num_rows, path.stat().st_size, sha256_of(path))]
