"""Which part of a step runs, on a host and on a GPU whose events tell other times than the host's clock."""

from types import SimpleNamespace
from typing import Any

import pytest

from pretraining.training.callbacks.timing import StepTimer
from pretraining.training.metrics.hardware_metrics import COMBINED, combine_ranks
from pretraining.training.metrics.throughput import MovingAverage
from tests.unit.training.metrics.test_throughput import Clock, meter


class Engine:
    """Its update takes the host 1 second, and the GPU, which is behind, 4."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.gpu_now = 0.0

    def step(self) -> None:
        self.clock.now += 1
        self.gpu_now += 4


class Event:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def record(self) -> None:
        self.at = self.engine.gpu_now

    def elapsed_time(self, end: "Event") -> float:
        return 1000 * (end.at - self.at)


def time_of_a_step(*, on_gpu: bool) -> dict[str, float]:
    """Data 2 s, a step of 10 s of the host's clock with the update in it, and 3 s of whatever."""
    clock = Clock()
    engine = Engine(clock)
    trainer: Any = SimpleNamespace(meter=meter(clock), model_wrapped=engine)
    timing = StepTimer(trainer, make_event=(lambda: Event(engine)) if on_gpu else None)
    nothing: Any = None
    timing.train_begin(nothing, nothing)
    with trainer.meter.times.part("data"):
        clock.now += 2
    timing.step_begin(nothing, nothing)
    clock.now += 5
    engine.step()
    clock.now += 4
    timing.step_end(nothing, nothing)
    clock.now += 3
    return trainer.meter.times.take()


@pytest.mark.parametrize(("on_gpu", "optimizer"), [(False, 1), (True, 4)])
def test_the_update_is_timed_where_it_runs(on_gpu: bool, optimizer: float) -> None:
    taken = time_of_a_step(on_gpu=on_gpu)
    assert taken["interval_seconds"] == 15
    assert (taken["data_seconds"], taken["other_seconds"]) == (2, 3)
    assert (taken["optimizer_seconds"], taken["forward_backward_seconds"]) == (optimizer, 10 - optimizer)


def test_figures_of_the_processes_become_one() -> None:
    nan = float("nan")
    names = ["peak_memory_bytes", "gpu_memory_bytes", "gpu_utilization", "gpu_power_watts", "energy_joules"]
    assert list(COMBINED) == [*names, "host_memory_bytes", "peak_host_memory_bytes"]
    rows = [[5e9, 6e9, 0.9, 600.0, 10.0, 1e9, 3e9], [7e9, 8e9, 0.7, 500.0, nan, 2e9, 4e9]]
    assert combine_ranks(rows) == {
        "peak_memory_bytes": 7_000_000_000,
        "gpu_memory_bytes": 8_000_000_000,
        "gpu_utilization": pytest.approx(0.8),
        "gpu_power_watts": 1100,
        "host_memory_bytes": 3_000_000_000,
        "peak_host_memory_bytes": 7_000_000_000,
    }, "energy of which a part is not known is not known"


def test_the_first_smoothed_losses_are_not_drawn_to_zero() -> None:
    smoothed = MovingAverage()
    for _ in range(3):
        smoothed.add(9.0)
        assert smoothed.value == pytest.approx(9.0)
    smoothed.add(5.0)
    assert 7.9 < smoothed.value < 8.0
