import random

import numpy as np
import pytest

from pretraining.data.build.prepared_batch import document_rows, prepare
from pretraining.data.encode.encoded import DocumentMetadata, EncodedBatch
from pretraining.data.encode.splits import SPLITS
from pretraining.data.input.reading import Position


def batch_of(splits: list[int], chance: random.Random) -> EncodedBatch:
    lengths = np.array([chance.randrange(5) for _ in splits], np.int64)
    num = len(splits)
    zeros = np.zeros(num, np.int64)
    sources = [chance.choice("ab") for _ in splits]
    rows = DocumentMetadata(sources, np.arange(num), zeros, zeros + 1, np.array(splits, np.int64))
    ids = np.arange(lengths.sum(), dtype=np.uint16)
    return EncodedBatch("a.jsonl", rows, ids, lengths, [], Position(0, 0, num), 0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_each_document_is_in_its_split_with_its_ids_and_in_order(seed: int) -> None:
    chance = random.Random(seed)
    weights = chance.choice([[1, 1, 1], [20, 1, 0], [0, 0, 1]])
    batch = batch_of(chance.choices(range(3), weights, k=chance.randrange(50)), chance)
    prepared = prepare(batch)
    ends = np.cumsum(batch.lengths)
    for number, split in enumerate(SPLITS):
        chosen = [place for place, found in enumerate(batch.rows.splits) if found == number]
        assert (split in prepared.pieces) == bool(chosen)
        if chosen:
            pieces = prepared.pieces[split]
            expected = [one for place in chosen for one in range(ends[place] - batch.lengths[place], ends[place])]
            assert pieces.document_ids.tolist() == chosen
            assert pieces.lengths.tolist() == batch.lengths[chosen].tolist()
            assert pieces.ids.tolist() == expected
    assert not len(prepared.batch.ids)


def test_rows_of_several_batches_are_numbered_from_their_first_documents() -> None:
    chance = random.Random(0)
    batches = [(5, batch_of([0, 2], chance)), (1 << 40, batch_of([1], chance))]
    table = document_rows(batches)
    assert table["document_id"].to_pylist() == [5, 6, 1 << 40]
    assert table["split"].to_pylist() == ["train", "test", "validation"]
    assert table["file"].to_pylist() == ["a.jsonl"] * 3
    assert table["source"].to_pylist() == [source for _, batch in batches for source in batch.rows.sources]
