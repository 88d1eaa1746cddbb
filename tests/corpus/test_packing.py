import numpy as np
import pytest

from pretraining.corpus.packing import BlockPacker, TokenBlock


@pytest.mark.parametrize("block_length", [2, 3, 7, 64])
def test_blocks_are_the_concatenated_documents_and_know_their_pieces(block_length: int) -> None:
    random = np.random.default_rng(block_length)
    documents = [random.integers(3, 100, random.integers(1, 40)) for _ in range(60)]
    packer = BlockPacker(block_length=block_length)
    blocks: list[TokenBlock] = []
    for number, ids in enumerate(documents):
        blocks += packer.add(number, ids)
    stream = np.concatenate(documents)
    packed = np.concatenate([block.input_ids for block in blocks])
    assert len(packed) + packer.num_tail_tokens == len(stream)
    assert (packed == stream[: len(packed)]).all()
    assert all(len(block.input_ids) == block_length for block in blocks)

    rebuilt = {number: [] for number in range(len(documents))}
    for block in blocks:
        ends = [*block.document_starts[1:], block_length]
        assert block.document_starts[0] == 0
        assert len(rebuilt[block.document_ids[0]]) == block.first_document_offset
        for document_id, start, end in zip(block.document_ids, block.document_starts, ends, strict=True):
            rebuilt[document_id] += block.input_ids[start:end].tolist()
    for number, ids in enumerate(documents):
        assert rebuilt[number] == ids.tolist()[: len(rebuilt[number])]
