import numpy as np
import pytest

from pretraining.data.store.blocks import Blocks, divide_blocks, join_blocks, no_blocks
from pretraining.data.store.packing import ConcatPacker, DocumentSegments


def some_blocks() -> Blocks:
    lengths = np.array([1, 30, 2, 9, 100, 3, 3, 40])
    ids = np.arange(lengths.sum(), dtype=np.uint16)
    packer = ConcatPacker(block_length=8, dtype="uint16")
    packer.add(DocumentSegments(np.arange(8), np.zeros(8, np.int64), lengths, ids))
    return packer.complete()


@pytest.mark.parametrize("max_tokens", [1, 8, 20, 64, 10_000])
def test_parts_are_small_and_joined_all_blocks(max_tokens: int) -> None:
    blocks = some_blocks()
    parts = list(divide_blocks(blocks, max_tokens))
    assert all(part.input_ids.size <= max(max_tokens, 8) for part in parts)
    assert len(parts) == (1 if max_tokens == 10_000 else -(-len(blocks.input_ids) // max(1, max_tokens // 8)))
    joined = join_blocks(parts)
    for name in Blocks.__dataclass_fields__:
        assert np.array_equal(getattr(joined, name), getattr(blocks, name)), name


def test_no_blocks_are_no_parts() -> None:
    none = no_blocks(8, "uint16")
    assert list(divide_blocks(none, 8)) == []
    joined = join_blocks([none, some_blocks(), none])
    for name in Blocks.__dataclass_fields__:
        assert np.array_equal(getattr(joined, name), getattr(some_blocks(), name)), name
