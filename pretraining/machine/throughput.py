"""Tokens per second and MFU, measured over the steps alone: evaluation and saving do not count."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Throughput:
    """Speed over one logging interval. `mfu` (0 to 1) counts full attention; None where the GPU's peak is unknown."""

    tokens_per_second_per_gpu: float
    mfu: float | None
    seconds_left: float


class ThroughputMeter:
    """Measures the time of steps between two readings, less the pauses in between."""

    def __init__(
        self,
        *,
        tokens_per_step: int,
        num_gpus: int,
        flops_per_token: float,
        peak_flops_per_second: float | None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tokens_per_step = tokens_per_step
        self._tokens_per_step_per_gpu = tokens_per_step / num_gpus
        self._flops_per_token = flops_per_token
        self._peak_flops_per_second = peak_flops_per_second
        self._clock = clock
        self._interval_began_at: float | None = None
        self._paused_seconds = 0.0
        self._last_step = 0
        self._warm_steps = 0
        self._warm_seconds = 0.0
        self._has_warmed_up = False

    def start(self, step: int) -> None:
        """Begin to measure before the first step of this process; `step` are done already."""
        self._last_step = step
        self._paused_seconds = 0.0
        self._interval_began_at = self._clock()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time of what is not a step, such as an evaluation."""
        paused_at = self._clock()
        yield
        self._paused_seconds += self._clock() - paused_at

    def figures(self, step: int, *, max_steps: int) -> dict[str, float]:
        """What `read` measures, as keys of the log; MFU is left out where it is not known."""
        throughput = self.read(step, max_steps=max_steps)
        found = {} if throughput is None else dataclasses.asdict(throughput)
        return {name: value for name, value in found.items() if value is not None}

    def read(self, step: int, *, max_steps: int) -> Throughput | None:
        """Speed since the last reading; None when no step was finished since.

        The time left is told from all intervals but the first, whose first step allocates memory and fills caches.
        """
        num_steps = step - self._last_step
        if self._interval_began_at is None or num_steps == 0:
            return None
        now = self._clock()
        seconds = now - self._interval_began_at - self._paused_seconds
        self._interval_began_at, self._paused_seconds, self._last_step = now, 0.0, step
        if self._has_warmed_up:
            self._warm_steps += num_steps
            self._warm_seconds += seconds
        self._has_warmed_up = True
        rate = num_steps * self._tokens_per_step_per_gpu / seconds
        seconds_per_step = self._warm_seconds / self._warm_steps if self._warm_steps else seconds / num_steps
        peak = self._peak_flops_per_second
        mfu = None if peak is None else rate * self._flops_per_token / peak
        return Throughput(rate, mfu, seconds_per_step * (max_steps - step))
