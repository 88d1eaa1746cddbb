"""The order of the blocks: each once an epoch, shares exact, the same however it is read, and nothing stored for it."""

import subprocess
import sys

import numpy as np
import pytest

from pretraining.training.data.loader import BlockStream
from pretraining.training.data.order import WINDOW, BlockOrder, apportion, permute
from pretraining.training.data.phases import RunOrder
from tests.conftest import PROJECT_DIR

PINNED = [439, 699, 134, 455, 208, 185, 671, 86]
THREE = BlockOrder((100, 57, 7), (700, 250, 50), seed=1)


@pytest.mark.parametrize("size", [1, 2, 3, 100, 1000, 4097])
def test_a_permutation_has_each_number_once(size: int) -> None:
    for key in range(3):
        assert sorted(permute(np.arange(size), size, key=(key,)).tolist()) == list(range(size))


def test_a_permutation_leaves_no_pattern() -> None:
    size = 20_000
    places = np.arange(size)
    shuffled = permute(places, size, key=(42, 0, 0))
    limit = 4 / np.sqrt(size)  # four standard errors of a correlation of nothing
    assert abs(np.corrcoef(places, shuffled)[0, 1]) < limit
    assert abs(np.corrcoef(shuffled[:-1], shuffled[1:])[0, 1]) < limit
    assert abs(np.corrcoef(shuffled, permute(places, size, key=(42, 0, 1)))[0, 1]) < limit
    halves = [permute(places[:1000], 1000, key=(seed,))[:500].sum() for seed in range(400)]
    assert np.std(halves) == pytest.approx(500 * np.sqrt(1000**2 / 12 / 500 * 0.5), rel=0.15), "as of random draws"


@pytest.mark.guarantee("Each block comes once per epoch.")
def test_each_epoch_has_each_block_once_in_another_order() -> None:
    order = BlockOrder((751,), (WINDOW,), seed=42)
    epochs = [order.block_ids(np.arange(751 * epoch, 751 * (epoch + 1))).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(751)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert BlockOrder((751,), (WINDOW,), seed=43).block_ids(np.arange(751)).tolist() not in epochs


@pytest.mark.guarantee("The order is the same however it is read.")
def test_the_order_does_not_depend_on_how_it_is_read() -> None:
    whole = THREE.block_ids(np.arange(3000))
    assert np.array_equal(whole, np.concatenate([THREE.block_ids(np.arange(n, n + 8)) for n in range(0, 3000, 8)]))
    backwards = THREE.block_ids(np.arange(3000)[::-1])
    assert np.array_equal(whole, backwards[::-1])


def test_the_order_is_this_one() -> None:
    """Written down: another order in a later version would change every run that goes on with it."""
    assert BlockOrder((751,), (WINDOW,), seed=42).block_ids(np.arange(8)).tolist() == PINNED


@pytest.mark.guarantee("Shares of a mixture are exact in any 1,000 consecutive blocks.")
def test_any_thousand_blocks_in_a_row_hold_exactly_the_shares() -> None:
    sources, _ = THREE.source_positions(np.arange(5000))
    for first in range(0, 4000, 7):
        assert np.bincount(sources[first : first + WINDOW]).tolist() == [700, 250, 50]
    for first in range(0, 4000, 7):  # and eight are never far from them
        assert abs(np.bincount(sources[first : first + 8], minlength=3) - [5.6, 2, 0.4]).max() < 2


def test_each_source_is_read_block_by_block_epoch_by_epoch() -> None:
    ids = THREE.block_ids(np.arange(4000))
    for source, (first, size) in enumerate([(0, 100), (100, 57), (157, 7)]):
        own = ids[(ids >= first) & (ids < first + size)]
        assert len(own) == THREE.num_consumed(4000)[source]
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size].tolist()) == list(range(first, first + size))


@pytest.mark.parametrize("weights", [[1, 1, 1], [0.7, 0.3], [1e6, 1.0, 3.3], [2, 3, 5, 7, 11]])
def test_shares_of_a_window_add_up_and_are_within_one_block(weights: list[float]) -> None:
    shares = apportion(weights)
    assert sum(shares) == WINDOW
    assert all(abs(share - WINDOW * weight / sum(weights)) < 1 for share, weight in zip(shares, weights, strict=True))


def test_skipped_blocks_are_left_out_and_all_others_stay_in_order() -> None:
    stream = BlockStream(RunOrder.of(BlockOrder((100,), (WINDOW,), seed=1)))
    before = stream.block_ids(0, 60).tolist()
    stream.skip(3, 2)
    assert stream.block_ids(0, 58).tolist() == before[:3] + before[5:]
    stream.skip(2, 3)  # around the gap
    assert stream.block_ids(0, 55).tolist() == before[:2] + before[7:]
    stream.skip(50, 1)
    assert stream.block_ids(0, 54).tolist() == before[:2] + before[7:55] + before[56:]
    assert BlockStream(stream.run, stream.skipped).block_ids(0, 54).tolist() == stream.block_ids(0, 54).tolist()


HALF_A_BILLION = """
import resource, numpy as np
from pretraining.training.data.order import BlockOrder
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
order = BlockOrder((500_000_000,), (1000,), seed=42)
first = order.block_ids(np.arange(1024))
last = order.block_ids(np.arange(499_998_976, 500_000_000))
assert len({*first.tolist(), *last.tolist()}) == 2048
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_half_a_billion_blocks_take_no_memory() -> None:
    """An order of them that is written down would take 2 GB, a bit for each block 60 MB."""
    done = subprocess.run(
        [sys.executable, "-c", HALF_A_BILLION], cwd=PROJECT_DIR, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 10_000, "KB"
