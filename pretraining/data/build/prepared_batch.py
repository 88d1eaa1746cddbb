"""Divide encoded batches by split, in the threads that encode: the writer of a slice takes one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pretraining.data.encode.encoded import EncodedBatch
from pretraining.data.encode.splits import SPLITS, Split
from pretraining.data.store.packing import DocumentSegments
from pretraining.data.store.shards import document_table


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """An encoded batch, without its ids, and its documents by split, numbered from 0."""

    batch: EncodedBatch
    pieces: dict[Split, DocumentSegments]


def prepare(batch: EncodedBatch) -> PreparedBatch:
    """Divide a batch by split."""
    bounds = np.concatenate([[0], np.cumsum(batch.lengths)])
    pieces = {}
    for number, split in enumerate(SPLITS):
        chosen = np.flatnonzero(batch.rows.splits == number)
        if len(chosen):
            lengths = batch.lengths[chosen]
            ids = _join_runs(batch.ids, bounds, chosen)
            pieces[split] = DocumentSegments(chosen, np.zeros(len(chosen), np.int64), lengths, ids)
    return PreparedBatch(replace(batch, ids=batch.ids[:0].copy()), pieces)


def _join_runs(ids: np.ndarray, bounds: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The ids of the chosen documents, a run of neighbors at a time: 4 times as fast as a mask over all ids."""
    if len(chosen) == len(bounds) - 1:
        return ids
    breaks = np.flatnonzero(np.diff(chosen) > 1)
    firsts, lasts = chosen[np.append(0, breaks + 1)], chosen[np.append(breaks, -1)]
    runs = zip(bounds[firsts].tolist(), bounds[lasts + 1].tolist(), strict=True)
    return np.concatenate([ids[begin:end] for begin, end in runs])


def document_rows(batches: Sequence[tuple[int, EncodedBatch]]) -> pa.Table:
    """One row per document of batches, each with the id of its first document."""
    document_ids = np.concatenate([first_id + np.arange(len(batch.lengths)) for first_id, batch in batches])
    lengths = np.concatenate([batch.lengths for _, batch in batches])
    return document_table(
        [batch.rows for _, batch in batches], [batch.path for _, batch in batches], document_ids, lengths
    )
