"""Tokens per second and MFU over the steps only, and the split of all time into data, compute, saves and so on."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

Part = Literal["data", "forward_backward", "optimizer", "save", "evaluation", "other"]
PARTS: tuple[Part, ...] = get_args(Part)
SMOOTHING = 0.98  # about the mean of the last 50 steps
WINDOWS = (10, 50)  # steps over which the speed is averaged


@dataclass
class MovingAverage:
    """Exponential moving average of a metric by step, divided by the sum of its weights, so it does not start at 0."""

    sum: float = 0.0
    weight: float = 0.0

    def add(self, value: float) -> None:
        """Add the metric of a step."""
        self.sum = SMOOTHING * self.sum + (1 - SMOOTHING) * value
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    @property
    def value(self) -> float:
        """The average; NaN before the first step."""
        return self.sum / self.weight if self.weight else math.nan


class TimeBreakdown:
    """Counts seconds by part. Callbacks, the log and whatever has no separate part are "other"."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.start()

    def start(self) -> None:
        """Reset all counts and start now."""
        self._part: Part = "other"
        self._since = self._clock()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._totals = dict.fromkeys(PARTS, 0.0)

    def enter(self, part: Part) -> Part:
        """Count for `part` from now on; returns the previous part."""
        before, now = self._part, self._clock()
        self._seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    @contextmanager
    def part(self, part: Part) -> Iterator[None]:
        """Count the body for `part`, then return to the previous part."""
        before = self.enter(part)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, seconds: float, source: Part, target: Part) -> None:
        """Move seconds from `source` to `target`: work that the GPU did later than the host."""
        seconds = min(max(seconds, 0.0), self._seconds[source])
        self._seconds[source] -= seconds
        self._seconds[target] += seconds

    def take(self) -> dict[str, float]:
        """The seconds since the last call, as keys of the log; `interval_seconds` is their sum."""
        self.enter(self._part)
        for part, seconds in self._seconds.items():
            self._totals[part] += seconds
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return _as_metrics(taken, "interval_seconds")

    def totals(self) -> dict[str, float]:
        """The sum of all that `take` returned since the start; `total_seconds` is the total."""
        return _as_metrics(self._totals, "total_seconds")


def _as_metrics(seconds: dict[Part, float], name_of_sum: str) -> dict[str, float]:
    """Rounded to the microsecond; the sum is that of the rounded values, so that the log adds up."""
    rounded = {f"{part}_seconds": round(value, 6) for part, value in seconds.items()}
    return {name_of_sum: round(sum(rounded.values()), 6), **rounded}


@dataclass(frozen=True)
class StepWork:
    """The work of a step over all GPUs, and the peak of one GPU; None if unknown."""

    tokens: int
    blocks: int
    num_gpus: int
    flops_per_token: float
    causal_flops_per_token: float
    peak_flops_per_second: float | None

    def speed_metrics(self, steps_per_second: float) -> dict[str, float]:
        """A speed as keys of the log, without the two MFUs (0 to 1) where the peak is unknown.

        TFLOP/s and `mfu` count the whole square of attention, `mfu_causal` the half that is needed; neither counts
        what activation checkpointing recomputes.
        """
        rate = steps_per_second * self.tokens / self.num_gpus
        metrics = {
            "tokens_per_second_per_gpu": rate,
            "blocks_per_second": steps_per_second * self.blocks,
            "tflops_per_second_per_gpu": rate * self.flops_per_token / 1e12,
        }
        if self.peak_flops_per_second is not None:
            metrics["mfu"] = rate * self.flops_per_token / self.peak_flops_per_second
            metrics["mfu_causal"] = rate * self.causal_flops_per_token / self.peak_flops_per_second
        return metrics


class ThroughputMeter:
    """Measures the time of steps between two readings, without the pauses in between."""

    def __init__(self, work: StepWork, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.work = work
        self.times = TimeBreakdown(clock)
        self._clock = clock
        self._interval_started_at: float | None = None
        self._paused_seconds = 0.0
        self._paused_at: float | None = None
        self._last_step = 0
        self._warm_steps = 0
        self._warm_seconds = 0.0
        self._warm_paused_seconds = 0.0
        self._has_warmed_up = False
        self._total_paused_seconds = 0.0
        self._step_ends: deque[float] = deque(maxlen=max(WINDOWS) + 1)  # seconds of the clock without pauses

    def start(self, step: int) -> None:
        """Start to measure before the first step of this process; `step` steps are done already."""
        self.times.start()
        self.go_back(step)

    def go_back(self, step: int) -> None:
        """Start the next interval now, at `step`, e.g. after a rollback."""
        self._last_step = step
        self._paused_seconds = 0.0
        self._interval_started_at = self._clock()
        if self._paused_at is not None:
            self._paused_at = self._interval_started_at
        self._step_ends.clear()
        self._seconds_per_step = MovingAverage()

    def end_step(self) -> None:
        """Note that a step has ended, for the speed of the last steps; called outside of pauses."""
        self._step_ends.append(self._clock() - self._total_paused_seconds)
        if len(self._step_ends) > 1:
            self._seconds_per_step.add(self._step_ends[-1] - self._step_ends[-2])

    @contextmanager
    def pause(self, part: Part = "other") -> Iterator[None]:
        """Exclude the body, e.g. an evaluation, from the time of steps, and count it for `part`.

        A pause within a pause is part of the outer one.
        """
        is_within = self._paused_at is not None
        if not is_within:
            self._paused_at = self._clock()
        try:
            with self.times.part(part):
                yield
        finally:
            if not is_within and self._paused_at is not None:
                seconds = self._clock() - self._paused_at
                self._paused_seconds += seconds
                self._total_paused_seconds += seconds
                self._paused_at = None

    def pop_metrics(self, step: int, *, max_steps: int) -> dict[str, float]:
        """Speed since the last reading, as keys of the log; empty when no step was finished since.

        The time left and the overall speed exclude the first interval, whose first step allocates memory and fills
        caches; the overall speed starts with the second interval. The time left includes pauses at the same rate.
        """
        num_steps = step - self._last_step
        if self._interval_started_at is None or num_steps == 0:
            return {}
        now = self._clock()
        paused, self._paused_seconds = self._paused_seconds, 0.0
        seconds = now - self._interval_started_at - paused
        self._interval_started_at, self._last_step = now, step
        if self._has_warmed_up:
            self._warm_steps += num_steps
            self._warm_seconds += seconds
            self._warm_paused_seconds += paused
        self._has_warmed_up = True
        metrics = self.work.speed_metrics(num_steps / seconds)
        seconds_per_step = seconds / num_steps
        if self._warm_steps:
            seconds_per_step = (self._warm_seconds + self._warm_paused_seconds) / self._warm_steps
            overall = self.overall_metrics()["tokens_per_second_per_gpu"]
            metrics["overall_tokens_per_second_per_gpu"] = overall
        return {**metrics, **self._window_metrics(), "seconds_left": seconds_per_step * (max_steps - step)}

    def _window_metrics(self) -> dict[str, float]:
        """Tokens per second of one GPU over each of `WINDOWS` that is full, and smoothed.

        All start empty with each start of a run and after a rollback, and without the first step, which warms up.
        What is smoothed is the time of a step.
        """
        ends, tokens = self._step_ends, self.work.tokens / self.work.num_gpus
        metrics = {
            f"last_{window}_steps_tokens_per_second_per_gpu": window * tokens / (ends[-1] - ends[-1 - window])
            for window in WINDOWS
            if len(ends) > window
        }
        if len(ends) > 1:
            metrics["smoothed_tokens_per_second_per_gpu"] = tokens / self._seconds_per_step.value
        return metrics

    def overall_metrics(self) -> dict[str, float]:
        """The speed since the start, without the first interval and pauses; empty before the second interval."""
        return self.work.speed_metrics(self._warm_steps / self._warm_seconds) if self._warm_steps else {}
