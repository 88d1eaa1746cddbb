import numpy as np
import pytest

from pretraining.data.store import packing as packing_room
from pretraining.data.store.blocks import Blocks
from pretraining.data.store.packing import (
    BLOCKS_PER_PENDING,
    DocumentSegments,
    Packer,
    Packing,
    best_fit_decreasing,
    make_packer,
)

PADDING = 2


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> int:
    """Tokens of the window that best fit chooses from."""
    monkeypatch.setattr(packing_room, "WINDOW_TOKENS", 8192)
    return 8192


def pieces_of(documents: list[np.ndarray], first_id: int = 0) -> DocumentSegments:
    lengths = np.array([len(ids) for ids in documents], dtype=np.int64)
    ids = np.concatenate([np.empty(0, np.uint16), *documents])
    return DocumentSegments(np.arange(len(documents)) + first_id, np.zeros(len(documents), np.int64), lengths, ids)


def random_documents(number: int, longest: int, seed: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(3, 100, random.integers(1, longest), dtype=np.uint16) for _ in range(number)]


def pack(packer: Packer, documents: list[np.ndarray], batch: int) -> list[Blocks]:
    batches = [pieces_of(documents[n : n + batch], n) for n in range(0, len(documents), batch)]
    return [packer.add(pieces) for pieces in batches] + [packer.flush()]


def rebuilt(blocks: list[Blocks], carried: DocumentSegments, block_length: int) -> dict[int, dict[int, list[int]]]:
    """Ids of each document by the offset of their piece, from the blocks' own boundaries."""
    pieces: dict[int, dict[int, list[int]]] = {}
    for batch in blocks:
        for number, ids in enumerate(batch.input_ids):
            first, last = batch.piece_bounds[number], batch.piece_bounds[number + 1]
            num_tokens = block_length - batch.num_padding_tokens[number]
            ends = [*batch.document_starts[first + 1 : last], num_tokens]
            assert batch.document_starts[first] == 0
            assert (ids[num_tokens:] == PADDING).all()
            for piece, end in zip(range(first, last), ends, strict=True):
                document = pieces.setdefault(int(batch.document_ids[piece]), {})
                document[int(batch.document_offsets[piece])] = ids[batch.document_starts[piece] : end].tolist()
    start = 0
    for document_id, offset, length in zip(carried.document_ids, carried.offsets, carried.lengths, strict=True):
        pieces.setdefault(int(document_id), {})[int(offset)] = carried.ids[start : start + length].tolist()
        start += length
    return pieces


def whole(pieces: dict[int, list[int]]) -> list[int]:
    ids: list[int] = []
    for offset in sorted(pieces):
        assert offset == len(ids)
        ids += pieces[offset]
    return ids


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize(("block_length", "batch"), [(2, 60), (3, 1), (7, 11), (64, 60)])
def test_blocks_and_what_is_carried_are_all_documents_and_know_their_pieces(
    packing: Packing, block_length: int, batch: int
) -> None:
    documents = random_documents(60, 40, seed=block_length)
    packer = make_packer(packing, block_length=block_length, dtype="uint16", padding_id=PADDING)
    found = rebuilt(pack(packer, documents, batch), packer.pending, block_length)
    assert [whole(found[number]) for number in range(len(documents))] == [ids.tolist() for ids in documents]


def test_concat_is_the_stream_cut_into_blocks() -> None:
    documents = random_documents(100, 30, seed=1)
    packer = make_packer("concat", block_length=16, dtype="uint16", padding_id=PADDING)
    stream = np.concatenate(documents)
    packed = np.concatenate([blocks.input_ids.reshape(-1) for blocks in pack(packer, documents, 7)])
    assert (packed == stream[: len(packed)]).all()
    assert (packer.pending.ids == stream[len(packed) :]).all()
    assert packer.pending.num_tokens < 16


@pytest.mark.parametrize("block_length", [16, 24, 200])
def test_concat_gives_blocks_of_full_row_groups_until_it_is_asked_for_all(
    monkeypatch: pytest.MonkeyPatch, block_length: int
) -> None:
    monkeypatch.setattr(packing_room, "TOKENS_PER_ROW_GROUP", 100)
    documents = random_documents(60, 50, seed=3)
    documents.insert(40, np.arange(3, 2000, dtype=np.uint16))
    packer = make_packer("concat", block_length=block_length, dtype="uint16", padding_id=PADDING)
    num_packed = num_added = 0
    for number, ids in enumerate(documents):
        blocks = packer.add(pieces_of([ids], number))
        num_added += len(ids)
        num_packed += blocks.input_ids.size
        size = {16: 96, 24: 96, 200: 200}[block_length]
        assert num_packed % size == 0
        assert num_added - num_packed < size + block_length
    num_packed += packer.complete().input_ids.size
    assert num_packed == num_added // block_length * block_length


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_packer_goes_on_from_what_another_has_carried(packing: Packing, small_window: int) -> None:
    documents = random_documents(3 * small_window // 8, 16, seed=2)
    one, first, second = (make_packer(packing, block_length=8, dtype="uint16", padding_id=PADDING) for _ in range(3))
    batches = [pieces_of(documents[n : n + 100], n) for n in range(0, len(documents), 100)]
    expected = [one.add(batch) for batch in batches] + [one.flush()]
    blocks = [first.add(batch) for batch in batches[:13]]
    second.pending = first.pending
    blocks += [second.add(batch) for batch in batches[13:]] + [second.flush()]
    for a, b in zip(expected, blocks, strict=True):
        assert (a.input_ids == b.input_ids).all()
        assert (a.document_ids == b.document_ids).all()


def test_best_fit_cuts_only_documents_longer_than_a_block_and_hardly_pads() -> None:
    random = np.random.default_rng(3)
    lengths = np.minimum(random.lognormal(5, 1, 20_000).astype(int) + 1, 5000)  # like news: mean 245 tokens
    documents = [np.full(length, 7, np.uint16) for length in lengths]
    packer = make_packer("best_fit", block_length=1024, dtype="uint16", padding_id=PADDING)
    blocks = pack(packer, documents, 1000)
    found = rebuilt(blocks, packer.pending, 1024)
    cut = {number for number, pieces in found.items() if len(pieces) > 1}
    assert cut == {number for number, length in enumerate(lengths) if length > 1024}
    num_padding = sum(int(batch.num_padding_tokens.sum()) for batch in blocks)
    assert num_padding < 0.002 * lengths.sum()
    assert packer.pending.num_tokens == 0


def test_documents_that_never_fill_a_block_do_not_gather(small_window: int) -> None:
    packer = make_packer("best_fit", block_length=10, dtype="uint16", padding_id=PADDING)
    for n in range(50):
        packer.add(pieces_of([np.full(6, 7, np.uint16)] * 500, 500 * n))
        assert packer.pending.num_tokens <= small_window + small_window // BLOCKS_PER_PENDING


def test_best_fit_takes_the_tightest_room() -> None:
    assert best_fit_decreasing([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]
    assert best_fit_decreasing([], 10) == []


class Compared(int):
    """A length that counts how often it is compared."""

    num_times = 0

    def __gt__(self, other: int) -> bool:
        Compared.num_times += 1
        return int(self) > other

    def __lt__(self, other: int) -> bool:
        Compared.num_times += 1
        return int(self) < other


def test_best_fit_searches_by_halves() -> None:
    """Rooms of at most 4,096 lengths: 13 comparisons a piece. One with each open bin would be thousands."""
    lengths = [Compared(length) for length in np.random.default_rng(0).integers(1, 4096, 50_000)]
    Compared.num_times = 0
    bins = best_fit_decreasing(lengths, 4096)
    assert 50_000 < Compared.num_times <= 13 * 50_000
    assert sorted(number for numbers in bins for number in numbers) == list(range(len(lengths)))
    assert max(sum(lengths[number] for number in numbers) for numbers in bins) <= 4096
