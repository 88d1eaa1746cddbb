"""Row groups of the shards of a split; tests/programs has the rest of `slice_writer`."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pretraining.data.build import slice_writer
from pretraining.data.build.progress import SplitProgress
from pretraining.data.build.slice_writer import SplitWriter
from pretraining.data.store import packing
from pretraining.data.store.packing import DocumentSegments, Packing, make_packer
from pretraining.data.store.shards import block_schema

TOKENS = 200


@pytest.mark.parametrize("block_length", [20, 48, 300])
@pytest.mark.parametrize("kind", ["concat", "best_fit"])
def test_row_groups_are_full_and_together_all_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Packing, block_length: int
) -> None:
    for module in (slice_writer, packing):
        monkeypatch.setattr(module, "TOKENS_PER_ROW_GROUP", TOKENS)
    monkeypatch.setattr(packing, "WINDOW_TOKENS", 3 * TOKENS)
    chance = np.random.default_rng(block_length)
    packer = make_packer(kind, block_length=block_length, dtype="uint16", padding_id=2)
    progress = SplitProgress()
    documents = [chance.integers(3, 999, size, dtype=np.uint16) for size in chance.integers(1, 90, 99)]
    documents[50] = chance.integers(3, 999, 3000, dtype=np.uint16)
    with ThreadPoolExecutor(1) as executor:
        writer = SplitWriter(tmp_path, "train", 0, packer, block_schema(block_length, "uint16"), executor)
        for number, ids in enumerate(documents):
            piece = DocumentSegments(np.array([number]), np.array([0]), np.array([len(ids)]), ids)
            writer.add(piece, progress)
        writer.close(progress)
    file = pq.ParquetFile(tmp_path / progress.shards[0].path)
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    full = max(1, TOKENS // block_length)
    assert all(full <= size < 2 * full for size in sizes[:-1])
    assert 0 < sizes[-1] < 2 * full
    assert sum(sizes) == progress.num_blocks == progress.shards[0].num_rows
    assert progress.num_tokens == sum(map(len, documents))
    in_blocks = progress.num_blocks * block_length - progress.num_padding_tokens
    assert in_blocks + packer.pending.num_tokens == progress.num_tokens
    if kind == "concat":
        assert set(sizes[:-1]) == {full}
        ids = np.concatenate(file.read()["input_ids"].to_pylist())
        assert np.array_equal(ids, np.concatenate(documents)[: len(ids)])
        assert packer.pending.num_tokens < block_length
