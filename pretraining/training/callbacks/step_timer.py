"""Split the time of a step into data, forward and backward, and optimizer, without waiting for the GPU.

Each step ends with one copy of its sums to the host (`StepMetrics`), which waits for the GPU. So the host's clock
measures a whole step and the wait for data before it. Within a step the host runs ahead of the GPU: the time of the
optimizer is taken between two CUDA events, which are read in the next step. It starts when backward has ended, so it
includes waiting for gradients that are still in transit between GPUs.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerControl, TrainerState

from pretraining.training.trainer.run_callback import RunCallback
from pretraining.training.trainer.trainer import PretrainingTrainer


def make_cuda_event() -> Any:
    """An event of the current CUDA stream that records the time."""
    return torch.cuda.Event(enable_timing=True)


class StepTimer(RunCallback):
    """Reports to the time split which part of a step runs.

    `make_event` makes CUDA events; without it (None) the host computes, and its clock measures the optimizer too.
    """

    def __init__(self, trainer: PretrainingTrainer, *, make_event: Callable[[], Any] | None) -> None:
        self._trainer = trainer
        self._times = trainer.meter.times
        self._events = None if make_event is None else (make_event(), make_event())
        self._has_updated = False

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Time the updates, which DeepSpeed's engine makes in its `step`, once per step."""
        engine = self._trainer.model_wrapped
        engine.step = self._timed(engine.step)

    def _timed(self, update: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._events is None:
                with self._times.part("optimizer"):
                    return update(*args, **kwargs)
            start, end = self._events
            start.record()
            try:
                return update(*args, **kwargs)
            finally:
                end.record()
                self._has_updated = True

        return timed

    def step_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """The data of the step is there."""
        self._times.enter("forward_backward")

    def step_end(self, state: TrainerState, control: TrainerControl) -> None:
        """The GPU has finished the step."""
        self._times.enter("other")
        if self._events is not None and self._has_updated:
            start, end = self._events
            self._times.move(start.elapsed_time(end) / 1000, "forward_backward", "optimizer")
            self._has_updated = False
