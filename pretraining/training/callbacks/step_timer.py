"""What of a step is waiting for data, forward and backward, and the optimizer's update; nothing waits for the GPU.

Each step ends with one copy of its sums to the host (`StepMetrics`), which waits until the GPU is done. So the time of
a step as a whole, and that of waiting for its blocks before it, are the host's own. Within a step the host runs ahead of
the GPU, and there the optimizer's share is the time between two CUDA events, read when both have happened long since.
It begins when backward has: gradients that are then still on their way between GPUs are waited for in it.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.training.checkpoint.checkpointing import CheckpointingTrainer


def make_cuda_event() -> Any:
    """An event of the stream that a step runs on."""
    return torch.cuda.Event(enable_timing=True)


class StepTimer(TrainerCallback):
    """Tells the time split which part of a step runs. It must stand right after what waits for the end of the step.

    `make_event` makes the events of a GPU; without it the host does the work itself, and its clock is right.
    """

    def __init__(self, trainer: CheckpointingTrainer, *, make_event: Callable[[], Any] | None) -> None:
        self._trainer = trainer
        self._times = trainer.meter.times
        self._update = None if make_event is None else (make_event(), make_event())
        self._has_updated = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the updates, which DeepSpeed's engine makes in its `step`, once a step."""
        engine = self._trainer.model_wrapped
        engine.step = self._measured(engine.step)

    def _measured(self, update: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*args: Any, **kwargs: Any) -> Any:
            if self._update is None:
                with self._times.part("optimizer"):
                    return update(*args, **kwargs)
            begin, end = self._update
            begin.record()
            try:
                return update(*args, **kwargs)
            finally:
                end.record()
                self._has_updated = True

        return measured

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The blocks are there."""
        self._times.enter("forward_backward")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The GPU is done."""
        self._times.enter("other")
        if self._update is not None and self._has_updated:
            begin, end = self._update
            self._times.move(begin.elapsed_time(end) / 1000, "forward_backward", "optimizer")
            self._has_updated = False
