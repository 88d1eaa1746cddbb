import random

import pytest

from pretraining.training.metrics.time_split import PARTS, TimeBreakdown
from tests.unit.training.metrics.test_throughput import Clock


def test_each_second_counts_for_one_part_and_the_parts_sum_to_the_whole() -> None:
    clock = Clock()
    times = TimeBreakdown(clock)
    clock.now += 1
    with times.part("data"):
        clock.now += 2
    times.enter("forward_backward")
    clock.now += 3
    with times.part("save"):
        clock.now += 4
        with times.part("evaluation"):
            clock.now += 5
    clock.now += 6
    with times.part("optimizer"):
        clock.now += 7
    times.enter("other")
    clock.now += 8
    assert times.take() == {
        "interval_seconds": 36,
        "data_seconds": 2,
        "forward_backward_seconds": 9,
        "optimizer_seconds": 7,
        "save_seconds": 4,
        "evaluation_seconds": 5,
        "other_seconds": 9,
    }
    clock.now += 1
    assert times.take()["interval_seconds"] == 1, "what was taken does not count again"
    assert times.totals()["total_seconds"] == 37
    assert times.totals()["other_seconds"] == 10


def test_whatever_happens_the_parts_sum_exactly_to_what_passed() -> None:
    clock, chance = Clock(), random.Random(0)
    times = TimeBreakdown(clock)
    for _ in range(200):
        began_at = clock.now
        for _ in range(chance.randrange(20)):
            times.enter(chance.choice(PARTS))
            clock.now += chance.random()
            times.move(chance.uniform(-1, 2), chance.choice(PARTS), chance.choice(PARTS))
        taken = times.take()
        assert all(seconds >= 0 for seconds in taken.values())
        whole = taken.pop("interval_seconds")
        assert whole == round(sum(taken.values()), 6)
        assert whole == pytest.approx(clock.now - began_at, abs=1e-5)


def test_what_a_gpu_took_is_moved_but_never_more_than_there_is() -> None:
    clock = Clock()
    times = TimeBreakdown(clock)
    times.enter("forward_backward")
    clock.now += 10
    times.enter("other")
    times.move(3, "forward_backward", "optimizer")
    times.move(30, "other", "optimizer")
    taken = times.take()
    assert (taken["forward_backward_seconds"], taken["optimizer_seconds"]) == (7, 3)
    assert taken["interval_seconds"] == 10
