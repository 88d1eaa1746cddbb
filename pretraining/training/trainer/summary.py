"""What a start of a run came to: its speed, its memory, and where its time went, said once at the end."""

import logging
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.runs.tracking.console import summary_lines
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.training.trainer.figures import TrainingFigures

logger = logging.getLogger(__name__)


class RunSummary(TrainerCallback):
    """Closes a training, also one that was stopped. It must stand after what waits for the last checkpoint."""

    def __init__(self, figures: TrainingFigures, metrics_log: MetricsLog) -> None:
        self._figures = figures
        self._metrics_log = metrics_log
        self._began_at = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the step."""
        self._began_at = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say it, and keep it."""
        figures = {"num_steps": state.global_step - self._began_at, **self._figures.of_this_start()}
        if state.is_world_process_zero:
            self._metrics_log.write_event({"step": state.global_step, "event": "summary", **figures})
            for line in summary_lines(figures):
                logger.info(line)
