"""Tokens per second and MFU, measured over the steps only: evaluations and saves do not count."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pretraining.training.metrics.time_split import Part, TimeBreakdown


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
                self._paused_seconds += self._clock() - self._paused_at
                self._paused_at = None

    def pop_metrics(self, step: int, *, max_steps: int) -> dict[str, float]:
        """Speed since the last reading, as keys of the log; empty when no step was finished since.

        The time left and the overall speed exclude the first interval, whose first step allocates memory and fills
        caches; before the second interval there is no overall speed. The time left includes pauses at the same rate.
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
        return {**metrics, "seconds_left": seconds_per_step * (max_steps - step)}

    def overall_metrics(self) -> dict[str, float]:
        """The speed since the start, without the first interval and pauses; empty before the second interval."""
        return self.work.speed_metrics(self._warm_steps / self._warm_seconds) if self._warm_steps else {}
