"""A training record beside what the Trainer knows of it: exact losses, tokens, speed, memory and where time went."""

from typing import Any

from pretraining.training.config.run_config import RunConfig
from pretraining.training.metrics.hardware_metrics import MachineFigures
from pretraining.training.metrics.step_metrics import StepMetrics
from pretraining.training.metrics.throughput import ThroughputMeter


class TrainingFigures:
    """Makes the figures of each record, and those of the whole start; both are called on every process."""

    def __init__(self, plan: RunConfig, watch: StepMetrics, meter: ThroughputMeter, machine: MachineFigures) -> None:
        self._plan = plan
        self._watch = watch
        self._meter = meter
        self._machine = machine

    def take(self, step: int, engine: Any) -> dict[str, float]:
        """All that happened since it was last taken."""
        num_blocks = self._plan.num_consumed(step)
        figures = self._watch.take_figures()
        figures["tokens"] = num_blocks * self._plan.batch.block_length
        figures |= self._plan.epochs_by_source(num_blocks)
        if self._plan.precision == "fp16":
            figures["loss_scale"] = float(engine.optimizer.loss_scale)
        figures |= self._meter.figures(step, max_steps=self._plan.num_steps)
        return {**figures, **self._machine.take(), **self._meter.times.take()}

    def of_this_start(self) -> dict[str, float]:
        """Speed without the first interval, the split of all the time, memory and energy, as keys of the summary."""
        self._meter.times.take()
        speed = self._meter.overall_figures()
        if speed:
            speed["overall_tokens_per_second_per_gpu"] = speed.pop("tokens_per_second_per_gpu")
        return {**speed, **self._meter.times.totals(), **self._machine.take()}
