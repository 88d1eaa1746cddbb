"""What a start of a run came to: its speed, its memory, and where its time went, said once at the end."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.machine.time_split import PARTS
from pretraining.runs.log_lines import duration, said_bytes, said_mfu
from pretraining.runs.metrics import MetricsLog
from pretraining.runs.run_cost import JOULES_PER_KILOWATT_HOUR, three_digits
from pretraining.training.training_figures import TrainingFigures

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


def summary_lines(figures: Mapping[str, float]) -> Iterator[str]:
    """A summary as people read it; what is not known is left out."""
    total = max(figures["total_seconds"], 1e-9)
    shares = (f"{part.replace('_', ' and ')} {100 * figures[f'{part}_seconds'] / total:.1f} %" for part in PARTS)
    yield f"time: {figures['num_steps']:,.0f} steps in {duration(total)}: {', '.join(shares)}"
    if "overall_tokens_per_second_per_gpu" in figures:
        said = f"speed: {figures['overall_tokens_per_second_per_gpu']:,.0f} tokens/s/GPU, "
        said += f"{figures['blocks_per_second']:,.1f} blocks/s, {figures['tflops_per_second_per_gpu']:,.3g} TFLOP/s/GPU"
        mfu = f", {said_mfu(figures)}" if "mfu" in figures else ""
        yield f"{said}{mfu}, without the first interval of the log, saves and evaluations"
    names = {"peak_memory_bytes": "on the fullest GPU at its peak", "host_memory_bytes": "of host memory now"}
    said_memory = [f"{said_bytes(figures[name])} {words}" for name, words in names.items() if name in figures]
    if said_memory:
        yield f"memory: {', '.join(said_memory)}"
    if "energy_joules" in figures:
        energy = three_digits(figures["energy_joules"] / JOULES_PER_KILOWATT_HOUR)
        yield f"energy of the GPUs: {energy} kWh"
