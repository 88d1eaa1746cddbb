import random
from contextlib import suppress
from itertools import accumulate

import pytest

from pretraining.training.metrics.throughput import PARTS, StepWork, ThroughputMeter, TimeBreakdown


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock, *, peak: float | None = 1e4) -> ThroughputMeter:
    work = StepWork(
        tokens=1000, blocks=8, num_gpus=2, flops_per_token=6.0, causal_flops_per_token=5.0, peak_flops_per_second=peak
    )
    return ThroughputMeter(work, clock=clock)


def test_speed_is_tokens_over_the_time_of_the_steps_alone() -> None:
    clock = Clock()
    throughput = meter(clock)
    throughput.start(0)
    clock.now += 10  # the first interval, with its warm-up
    first = throughput.pop_metrics(5, max_steps=20)
    assert first["tokens_per_second_per_gpu"] == pytest.approx(5 * 500 / 10)
    assert first["blocks_per_second"] == pytest.approx(5 * 8 / 10)
    assert first["mfu"] == pytest.approx(250 * 6 / 1e4)
    assert first["mfu_causal"] == pytest.approx(250 * 5 / 1e4)
    assert first["tflops_per_second_per_gpu"] == pytest.approx(250 * 6 / 1e12)
    assert first["seconds_left"] == pytest.approx(15 * 2)
    assert "overall_tokens_per_second_per_gpu" not in first, "all that was measured is the warm-up"
    clock.now += 5
    with throughput.pause("evaluation"):
        clock.now += 1000
    second = throughput.pop_metrics(10, max_steps=20)
    assert second["tokens_per_second_per_gpu"] == pytest.approx(5 * 500 / 5)
    assert second["seconds_left"] == pytest.approx(10 * 201), "without the slow first interval, with an evaluation"
    clock.now += 15
    third = throughput.pop_metrics(15, max_steps=20)
    assert third["tokens_per_second_per_gpu"] == pytest.approx(5 * 500 / 15)
    assert third["overall_tokens_per_second_per_gpu"] == pytest.approx(10 * 500 / 20)
    assert throughput.overall_metrics()["tokens_per_second_per_gpu"] == third["overall_tokens_per_second_per_gpu"]


def test_the_speed_of_the_last_steps_and_smoothed() -> None:
    """Steps of 1, 2, 3 ... seconds, with an evaluation of 100 s after every fifth; one GPU has 500 tokens of each.

    The first step warms up: it is in no window.
    """
    clock = Clock()
    throughput = meter(clock)
    throughput.start(0)
    for step in range(1, 61):
        clock.now += step
        throughput.end_step()
        if step % 5 == 0:
            with throughput.pause("evaluation"):
                clock.now += 100
        metrics = throughput.pop_metrics(step, max_steps=60)
        for window in (10, 50):
            last = range(step - window + 1, step + 1)
            speed = metrics.get(f"last_{window}_steps_tokens_per_second_per_gpu")
            assert speed == (None if last[0] < 2 else pytest.approx(window * 500 / sum(last)))
        weights = {earlier: 0.98 ** (step - earlier) for earlier in range(2, step + 1)}
        seconds = sum(weight * earlier for earlier, weight in weights.items()) / (sum(weights.values()) or 1)
        speed = metrics.get("smoothed_tokens_per_second_per_gpu")
        assert speed == (None if step == 1 else pytest.approx(500 / seconds))
    with throughput.pause():
        throughput.go_back(55)
    clock.now += 7
    throughput.end_step()
    assert not [name for name in throughput.pop_metrics(56, max_steps=60) if "steps" in name or "smoothed" in name]


def test_an_unknown_gpu_has_no_mfu() -> None:
    clock = Clock()
    throughput = meter(clock, peak=None)
    throughput.start(0)
    clock.now += 1
    metrics = throughput.pop_metrics(1, max_steps=2)
    assert metrics["tflops_per_second_per_gpu"] > 0
    assert not {"mfu", "mfu_causal"} & set(metrics)


def test_a_resumed_run_counts_its_own_steps_only() -> None:
    clock = Clock()
    throughput = meter(clock)
    throughput.start(100)
    for now, step in zip(accumulate([101.0, 1.0, 1.0]), (101, 102, 103), strict=True):
        clock.now = now
        assert throughput.pop_metrics(step, max_steps=110)["tokens_per_second_per_gpu"] == pytest.approx(500)


def test_no_finished_step_is_no_speed() -> None:
    throughput = meter(Clock())
    throughput.start(3)
    assert throughput.pop_metrics(3, max_steps=10) == {}
    assert throughput.overall_metrics() == {}


def test_a_pause_within_a_pause_counts_once() -> None:
    clock = Clock()
    throughput = meter(clock)
    throughput.start(0)
    with throughput.pause("save"):
        clock.now += 2
        with throughput.pause("save"):
            clock.now += 3
    clock.now += 1
    assert throughput.pop_metrics(1, max_steps=2)["tokens_per_second_per_gpu"] == pytest.approx(500)
    assert throughput.times.take()["save_seconds"] == 5


def test_a_run_that_goes_back_in_a_pause_measures_from_its_end() -> None:
    clock = Clock()
    throughput = meter(clock)
    throughput.start(0)
    clock.now += 10
    with throughput.pause():
        clock.now += 20
        throughput.go_back(0)
        clock.now += 30
    clock.now += 2
    assert throughput.pop_metrics(1, max_steps=2)["tokens_per_second_per_gpu"] == pytest.approx(250)


def test_a_pause_that_ends_with_an_error_is_a_pause() -> None:
    clock = Clock()
    throughput = meter(clock)
    throughput.start(0)
    with suppress(OSError), throughput.pause("save"):
        clock.now += 50
        raise OSError
    clock.now += 1
    assert throughput.pop_metrics(1, max_steps=2)["tokens_per_second_per_gpu"] == pytest.approx(500)
    assert throughput.times.take()["save_seconds"] == 50


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
