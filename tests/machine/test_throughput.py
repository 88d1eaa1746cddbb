from itertools import accumulate

import pytest

from pretraining.machine.throughput import ThroughputMeter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def meter(clock: Clock, *, peak: float | None = 1e4) -> ThroughputMeter:
    return ThroughputMeter(
        tokens_per_step=1000, num_gpus=2, flops_per_token=6.0, peak_flops_per_second=peak, clock=clock
    )


def test_speed_is_tokens_over_the_time_of_the_steps_alone() -> None:
    clock = Clock()
    throughput = meter(clock)
    throughput.start(0)
    clock.now += 10  # the first interval, with its warm-up
    first = throughput.read(5, max_steps=20)
    assert first is not None
    assert first.tokens_per_second_per_gpu == pytest.approx(5 * 500 / 10)
    assert first.mfu == pytest.approx(250 * 6 / 1e4)
    assert first.seconds_left == pytest.approx(15 * 2)
    clock.now += 5
    with throughput.pause():
        clock.now += 1000
    second = throughput.read(10, max_steps=20)
    assert second is not None
    assert second.tokens_per_second_per_gpu == pytest.approx(5 * 500 / 5)
    assert second.seconds_left == pytest.approx(10 * 1), "the slow first interval is left out"


def test_an_unknown_gpu_has_no_mfu() -> None:
    clock = Clock()
    throughput = meter(clock, peak=None)
    throughput.start(0)
    clock.now += 1
    reading = throughput.read(1, max_steps=2)
    assert reading is not None
    assert reading.mfu is None


def test_a_resumed_run_counts_its_own_steps_only() -> None:
    clock = Clock()
    throughput = meter(clock)
    throughput.start(100)
    for now, step in zip(accumulate([101.0, 1.0, 1.0]), (101, 102, 103), strict=True):
        clock.now = now
        reading = throughput.read(step, max_steps=110)
        assert reading is not None
        assert reading.tokens_per_second_per_gpu == pytest.approx(500)


def test_no_finished_step_is_no_reading() -> None:
    throughput = meter(Clock())
    throughput.start(3)
    assert throughput.read(3, max_steps=10) is None
