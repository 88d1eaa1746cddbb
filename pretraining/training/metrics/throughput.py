"""Tokens per second and MFU, measured over the steps alone: evaluation and saving do not count."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pretraining.training.metrics.time_split import Part, TimeBreakdown


@dataclass(frozen=True)
class StepWork:
    """What one step is, over all GPUs, and what one of them could do; None where its peak is unknown."""

    tokens: int
    blocks: int
    num_gpus: int
    flops_per_token: float
    causal_flops_per_token: float
    peak_flops_per_second: float | None

    def figures(self, steps_per_second: float) -> dict[str, float]:
        """A speed as keys of the log, without the two MFUs (0 to 1) where there is no peak to compare with.

        TFLOP/s and `mfu` count the whole square of attention, `mfu_causal` the half of it that is needed; neither
        counts what activation checkpointing computes again.
        """
        rate = steps_per_second * self.tokens / self.num_gpus
        figures = {
            "tokens_per_second_per_gpu": rate,
            "blocks_per_second": steps_per_second * self.blocks,
            "tflops_per_second_per_gpu": rate * self.flops_per_token / 1e12,
        }
        if self.peak_flops_per_second is not None:
            figures["mfu"] = rate * self.flops_per_token / self.peak_flops_per_second
            figures["mfu_causal"] = rate * self.causal_flops_per_token / self.peak_flops_per_second
        return figures


class ThroughputMeter:
    """Measures the time of steps between two readings, less the pauses in between."""

    def __init__(self, work: StepWork, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.work = work
        self.times = TimeBreakdown(clock)
        self._clock = clock
        self._interval_began_at: float | None = None
        self._paused_seconds = 0.0
        self._paused_at: float | None = None
        self._last_step = 0
        self._warm_steps = 0
        self._warm_seconds = 0.0
        self._warm_paused_seconds = 0.0
        self._has_warmed_up = False

    def start(self, step: int) -> None:
        """Begin to measure before the first step of this process; `step` are done already."""
        self.times.start()
        self.go_back(step)

    def go_back(self, step: int) -> None:
        """Measure the next interval from here, where the run stands at `step` again."""
        self._last_step = step
        self._paused_seconds = 0.0
        self._interval_began_at = self._clock()
        if self._paused_at is not None:
            self._paused_at = self._interval_began_at

    @contextmanager
    def pause(self, part: Part = "other") -> Iterator[None]:
        """Leave out the time of what is not a step, such as an evaluation, and count it for `part`.

        A pause within a pause is a part of that.
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

    def figures(self, step: int, *, max_steps: int) -> dict[str, float]:
        """Speed since the last reading, as keys of the log; nothing when no step was finished since.

        The time left and the overall speed are told from all intervals but the first, whose first step allocates
        memory and fills caches; until there is a second, there is no overall speed. The time left has its share of
        pauses: as many evaluations and saves are expected as there were.
        """
        num_steps = step - self._last_step
        if self._interval_began_at is None or num_steps == 0:
            return {}
        now = self._clock()
        paused, self._paused_seconds = self._paused_seconds, 0.0
        seconds = now - self._interval_began_at - paused
        self._interval_began_at, self._last_step = now, step
        if self._has_warmed_up:
            self._warm_steps += num_steps
            self._warm_seconds += seconds
            self._warm_paused_seconds += paused
        self._has_warmed_up = True
        figures = self.work.figures(num_steps / seconds)
        seconds_per_step = seconds / num_steps
        if self._warm_steps:
            seconds_per_step = (self._warm_seconds + self._warm_paused_seconds) / self._warm_steps
            overall = self.overall_figures()["tokens_per_second_per_gpu"]
            figures["overall_tokens_per_second_per_gpu"] = overall
        return {**figures, "seconds_left": seconds_per_step * (max_steps - step)}

    def overall_figures(self) -> dict[str, float]:
        """The speed since the start, without the first interval and the pauses; nothing before the second."""
        return self.work.figures(self._warm_steps / self._warm_seconds) if self._warm_steps else {}
