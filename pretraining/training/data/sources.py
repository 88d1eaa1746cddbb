"""The source of each document of a block store, in a few bytes per run of consecutive documents of one source."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pretraining.data.store.integrity import shard_file
from pretraining.data.store.manifest import Manifest
from pretraining.errors import UserError

MAX_SOURCES = 64  # each has metrics in the log; with more, e.g. one per domain name, the log would be unreadable


@dataclass(frozen=True)
class DocumentSources:
    """Documents `first_ids[i]` to `first_ids[i + 1]` - 1 have the source `names[sources[i]]`."""

    names: tuple[str, ...]
    first_ids: np.ndarray
    sources: np.ndarray

    def of(self, document_ids: np.ndarray) -> np.ndarray:
        """Return the numbers of the sources of documents, int64 like `document_ids`."""
        return self.sources[np.searchsorted(self.first_ids, document_ids, side="right") - 1]


def read_document_sources(store: Path, manifest: Manifest) -> DocumentSources | None:
    """Read the sources of a store's documents; None for one source, and for more than `MAX_SOURCES`.

    Raises:
        UserError: when a table of documents is missing or damaged.
    """
    runs, found = [], set()
    for shard in manifest.documents:
        for run in _runs_of(shard_file(store, shard, flag="--dataset")):
            runs.append(run)
            found.update(run[1].dictionary.to_pylist())
            if len(found) > MAX_SOURCES:
                return None  # at once: 100 million names take 10 GB of memory per rank
    if len(found) < 2:
        return None
    names = sorted(found)
    numbers = {name: number for number, name in enumerate(names)}
    tables = [np.array([numbers[name] for name in column.dictionary.to_pylist()], np.int64) for _, column in runs]
    sources = [
        table[column.indices.to_numpy(zero_copy_only=False)] for table, (_, column) in zip(tables, runs, strict=True)
    ]
    return DocumentSources(tuple(names), np.concatenate([ids for ids, _ in runs]), np.concatenate(sources))


def _runs_of(path: Path) -> Iterator[tuple[np.ndarray, pa.DictionaryArray]]:
    """For each batch of rows, the first document of each run of one source, and its source."""
    try:
        parquet = pq.ParquetFile(path, read_dictionary=["source"])
        batches = parquet.iter_batches(columns=["document_id", "source"])
        yield from (_first_of_runs(batch) for batch in batches if batch.num_rows)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--dataset: {path} cannot be read ({reason}); copy the folder again") from None


def _first_of_runs(batch: pa.RecordBatch) -> tuple[np.ndarray, pa.DictionaryArray]:
    sources = batch.column("source")
    numbers = sources.indices.to_numpy(zero_copy_only=False)
    starts = pa.array(np.flatnonzero(np.diff(numbers, prepend=-1)))
    taken = pc.take(batch.column("document_id"), starts)
    return taken.to_numpy(zero_copy_only=False).astype(np.int64), pc.take(sources, starts)
