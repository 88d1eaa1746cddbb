"""Each source continues through the phases of a run, wherever the run is interrupted."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from pretraining.training.data.loader import BlockStream
from pretraining.training.data.order import BlockOrder
from pretraining.training.data.phases import PhaseOrder, RecordedOrder, RunOrder, chain_orders

SIZES = {"web": 5000, "wiki": 700, "books": 90}
FIRST_IDS = {"web": 0, "wiki": 5000, "books": 5700}


def planned(**shares: int) -> PhaseOrder:
    names = tuple(shares)
    sizes, first_ids = tuple(SIZES[name] for name in names), tuple(FIRST_IDS[name] for name in names)
    return PhaseOrder(BlockOrder(sizes, tuple(shares.values()), 7, first_ids=first_ids), names, {})


PHASES = [planned(web=900, wiki=100), planned(wiki=250, web=250, books=500), planned(books=1000)]
FIRSTS = [0, 3000, 3150]
NUM_BLOCKS = 3240


def ids(run: RunOrder, first: int, count: int) -> list[int]:
    return BlockStream(run).block_ids(first, count).tolist()


def chained(
    phases: Sequence[PhaseOrder], firsts: Sequence[int], start: int = 0, before: RunOrder | None = None
) -> RunOrder:
    """The order of a run that resumes, as a checkpoint of the run before it has it."""
    read = {} if before is None else before.blocks_by_store(start)
    saved = None if before is None else before.at(start).record()
    return chain_orders(phases, firsts, start=start, read=read, saved=saved)


def resumed(phases: Sequence[PhaseOrder], firsts: Sequence[int], start: int, before: BlockStream) -> BlockStream:
    """The blocks of a run that resumes from a checkpoint of a run that rolled back."""
    read, saved = before.run.blocks_by_store(start), before.order.at(start).record()
    run = chain_orders(phases, firsts, start=start, read=read, saved=saved, skipped=before.skipped)
    return BlockStream(run, list(before.skipped))


WHOLE = chained(PHASES, FIRSTS)
ALL_IDS = ids(WHOLE, 0, NUM_BLOCKS)


def test_no_block_comes_twice_before_all_of_its_source_came() -> None:
    for name, size in SIZES.items():
        own = [number - FIRST_IDS[name] for number in ALL_IDS if 0 <= number - FIRST_IDS[name] < size]
        assert len(own) == WHOLE.blocks_by_store(NUM_BLOCKS)[name] > 0
        for first in range(0, len(own), size):
            epoch = own[first : first + size]
            assert len(set(epoch)) == len(epoch)
    assert WHOLE.blocks_by_store(NUM_BLOCKS)["books"] == 75 + 90, "an epoch and most of another"


def test_shares_are_those_of_the_phase() -> None:
    for start, end, shares in zip(FIRSTS, [*FIRSTS[1:], NUM_BLOCKS], PHASES, strict=True):
        before, after = WHOLE.blocks_by_store(start), WHOLE.blocks_by_store(end)
        for name, share in shares.data:
            assert after[name] - before[name] == pytest.approx((end - start) * share / 1000, abs=1)


@pytest.mark.parametrize("start", [1, 2999, 3000, 3001, 3149, 3150, 3151, 3239])
def test_a_resumed_run_reads_what_an_uninterrupted_one_reads(start: int) -> None:
    resumed = chained(PHASES, FIRSTS, start, WHOLE)
    assert ids(resumed, start, NUM_BLOCKS - start) == ALL_IDS[start:]
    assert resumed.blocks_by_store(NUM_BLOCKS) == WHOLE.blocks_by_store(NUM_BLOCKS)
    twice = chained(PHASES, FIRSTS, start, resumed)
    assert twice.at(start).record() == resumed.at(start).record() == WHOLE.at(start).record()


def test_runs_by_hand_read_the_same() -> None:
    run, found = chained(PHASES[:1], [0]), []
    for phase, start, end in zip(PHASES, FIRSTS, [*FIRSTS[1:], NUM_BLOCKS], strict=True):
        run = chained([phase], [0], start, run if start else None)
        found += ids(run, start, end - start)
    assert found == ALL_IDS


def test_phases_of_the_same_data_are_one_order() -> None:
    same = chained([PHASES[0], PHASES[0], PHASES[1]], [0, 100, 3000])
    assert len(same.orders) == 2
    assert ids(same, 0, 3100) == ALL_IDS[:3100]


def test_a_single_phase_is_the_order_without_phases() -> None:
    alone = BlockOrder((5000, 700), (900, 100), 7)
    assert ids(chained(PHASES[:1], [0]), 0, 4000) == alone.block_ids(np.arange(4000)).tolist()
    earlier = chain_orders(PHASES[:1], [0], start=1500, read={}, saved=WHOLE.orders[0].record())
    assert ids(earlier, 1500, 100) == alone.block_ids(np.arange(1500, 1600)).tolist()


def test_data_that_were_changed_begin_where_the_run_resumes() -> None:
    saved = RecordedOrder(0, [], {"web": 0, "wiki": 1})
    changed = chain_orders([planned(books=500, web=500)], [0], start=10, read={"web": 9, "wiki": 1}, saved=saved)
    assert changed.orders[0].order.first == 10
    assert changed.orders[0].order.num_read == (0, 9)
    assert changed.orders[0].order.keys == (2, 0), "a source keeps its permutations, a new one gets its own"
    assert changed.blocks_by_store(14) == {"web": 11, "wiki": 1, "books": 2}


def test_a_store_that_is_named_twice_is_two_sources() -> None:
    order = BlockOrder((90, 90), (500, 500), 7)
    twice = chained([PhaseOrder(order, ("books", "books"), {})], [0])
    assert ids(twice, 0, 90) == order.block_ids(np.arange(90)).tolist()
    assert twice.blocks_by_store(90) == {"books": 90}


def rolled_back(run: RunOrder, *skips: tuple[int, int]) -> BlockStream:
    stream = BlockStream(run)
    for first, count in skips:
        stream.skip(first, count)
    return stream


def test_what_a_rollback_skips_before_a_border_is_not_met_after_it() -> None:
    """500 blocks are skipped in the first phase: the second continues web behind them, and begins wiki at its first."""
    phases = [planned(web=1000), planned(web=300, wiki=700)]
    stream = rolled_back(chained(phases, [0, 2000]), (1000, 500))
    found = stream.block_ids(0, 3000)
    web, wiki = found[found < FIRST_IDS["wiki"]], found[found >= FIRST_IDS["wiki"]]
    assert len(set(web.tolist())) == len(web) == 2300
    assert sorted(wiki.tolist()) == list(range(5000, 5700)), "an epoch of it has each block once"
    alone = BlockOrder((5000,), (1000,), 7).block_ids(np.arange(2800))
    assert web.tolist() == [*alone[:1000], *alone[1500:]]


def test_a_rollback_over_a_border_skips_positions_of_each_phase() -> None:
    stream = rolled_back(WHOLE, (2950, 80))
    sizes = [SIZES[name] for name in ("web", "wiki")]
    found = stream.block_ids(2900, 250)
    assert found[:50].tolist() == ALL_IDS[2900:2950]
    assert found[50:100].tolist() == BlockOrder(tuple(sizes), (900, 100), 7).block_ids(np.arange(3000, 3050)).tolist()
    later = stream.order.orders[1].order
    assert later.num_read == (305, 2745, 0)
    assert found[100:].tolist() == later.block_ids(np.arange(3030, 3180)).tolist()


@pytest.mark.parametrize("skips", [[(1000, 500)], [(2950, 80)], [(3010, 20), (2950, 30), (2990, 40)], [(3000, 10)]])
def test_a_run_that_rolled_back_resumes_anywhere_with_the_same_blocks(skips: list[tuple[int, int]]) -> None:
    stream = rolled_back(WHOLE, *skips)
    expected = stream.block_ids(0, NUM_BLOCKS).tolist()
    for start in (1, 1000, 2960, 2999, 3000, 3001, 3020, 3150, 3151):
        again = resumed(PHASES, FIRSTS, start, stream)
        assert again.block_ids(start, NUM_BLOCKS - start).tolist() == expected[start:], start
        twice = resumed(PHASES, FIRSTS, 3200, again)
        assert twice.block_ids(3200, 40).tolist() == expected[3200:]
        assert twice.order.at(NUM_BLOCKS).record() == stream.order.at(NUM_BLOCKS).record()


def test_runs_by_hand_that_rolled_back_read_the_same() -> None:
    """Each phase is a run that resumes the one before with other data, and web is absent from the last but one."""
    phases = [planned(web=900, wiki=100), planned(books=1000), planned(web=500, books=500)]
    skips = {0: (1000, 500), 1: (3000, 10), 2: (3200, 20)}
    whole = rolled_back(chained(phases, FIRSTS), *skips.values())
    found, stream = [], BlockStream(chained(phases[:1], [0]))
    for number, (phase, start) in enumerate(zip(phases, FIRSTS, strict=True)):
        stream = resumed([phase], [0], start, stream) if start else stream
        stream.skip(*skips[number])
        end = [*FIRSTS[1:], NUM_BLOCKS][number]
        found += stream.block_ids(start, end - start).tolist()
    assert found == whole.block_ids(0, NUM_BLOCKS).tolist()


def test_a_checkpoint_without_what_was_read_before_its_order_resumes() -> None:
    record = replace(WHOLE.at(3100).record(), read=None)
    again = chain_orders(PHASES, FIRSTS, start=3100, read=WHOLE.blocks_by_store(3100), saved=record)
    assert ids(again, 3100, 140) == ALL_IDS[3100:]
