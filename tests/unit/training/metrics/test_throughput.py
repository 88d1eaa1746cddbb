from contextlib import suppress
from itertools import accumulate

import pytest

from pretraining.training.metrics.throughput import StepWork, ThroughputMeter


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
    first = throughput.figures(5, max_steps=20)
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
    second = throughput.figures(10, max_steps=20)
    assert second["tokens_per_second_per_gpu"] == pytest.approx(5 * 500 / 5)
    assert second["seconds_left"] == pytest.approx(10 * 201), "without the slow first interval, with an evaluation"
    clock.now += 15
    third = throughput.figures(15, max_steps=20)
    assert third["tokens_per_second_per_gpu"] == pytest.approx(5 * 500 / 15)
    assert third["overall_tokens_per_second_per_gpu"] == pytest.approx(10 * 500 / 20)
    assert throughput.overall_figures()["tokens_per_second_per_gpu"] == third["overall_tokens_per_second_per_gpu"]


def test_an_unknown_gpu_has_no_mfu() -> None:
    clock = Clock()
    throughput = meter(clock, peak=None)
    throughput.start(0)
    clock.now += 1
    figures = throughput.figures(1, max_steps=2)
    assert figures["tflops_per_second_per_gpu"] > 0
    assert not {"mfu", "mfu_causal"} & set(figures)


def test_a_resumed_run_counts_its_own_steps_only() -> None:
    clock = Clock()
    throughput = meter(clock)
    throughput.start(100)
    for now, step in zip(accumulate([101.0, 1.0, 1.0]), (101, 102, 103), strict=True):
        clock.now = now
        assert throughput.figures(step, max_steps=110)["tokens_per_second_per_gpu"] == pytest.approx(500)


def test_no_finished_step_is_no_speed() -> None:
    throughput = meter(Clock())
    throughput.start(3)
    assert throughput.figures(3, max_steps=10) == {}
    assert throughput.overall_figures() == {}


def test_a_pause_within_a_pause_counts_once() -> None:
    clock = Clock()
    throughput = meter(clock)
    throughput.start(0)
    with throughput.pause("save"):
        clock.now += 2
        with throughput.pause("save"):
            clock.now += 3
    clock.now += 1
    assert throughput.figures(1, max_steps=2)["tokens_per_second_per_gpu"] == pytest.approx(500)
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
    assert throughput.figures(1, max_steps=2)["tokens_per_second_per_gpu"] == pytest.approx(250)


def test_a_pause_that_ends_with_an_error_is_a_pause() -> None:
    clock = Clock()
    throughput = meter(clock)
    throughput.start(0)
    with suppress(OSError), throughput.pause("save"):
        clock.now += 50
        raise OSError
    clock.now += 1
    assert throughput.figures(1, max_steps=2)["tokens_per_second_per_gpu"] == pytest.approx(500)
    assert throughput.times.take()["save_seconds"] == 50
