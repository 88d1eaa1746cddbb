"""Time a training: start the clock, split each step into data, forward and backward, and optimizer, log the summary.

Nothing here waits for the GPU. Each step ends with one copy of its sums to the host (`StepMetrics`), which waits for
it, so the host's clock measures a whole step and the wait for data before it. Within a step the host runs ahead of the
GPU: the time of the optimizer is taken between two CUDA events, which are read after the step. It starts when backward
has ended, so it includes waiting for gradients that are still in transit between GPUs.
"""

import logging
from collections.abc import Callable
from typing import Any

from deepspeed import DeepSpeedEngine
from transformers import TrainerControl, TrainerState

from pretraining.cli.deepspeed_config import zero_stage
from pretraining.errors import UserError
from pretraining.runs.run_record import add_to_run_record
from pretraining.runs.tracking.console import summary_lines
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.system.privacy import mask_all
from pretraining.training.distributed.collectives import run_on_main
from pretraining.training.model.document_attention import attention_kernel
from pretraining.training.trainer.hf_internals import RunCallback
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)


class RunStart(RunCallback):
    """Checks DeepSpeed's engine, records its resolved config in run.json, and starts the clock."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Check, start, record.

        Raises:
            UserError: when ZeRO is not on as the config asks for, or run.json cannot be written; on every process.
        """
        engine, run_dir = self._trainer.model_wrapped, self._trainer.run_config.run_dir
        stage = engine.zero_optimization_stage() if isinstance(engine, DeepSpeedEngine) else None
        asked = zero_stage(self._trainer.run_config.ds_config)
        if stage != asked:  # some launchers silently drop the config
            raise UserError(
                f"--deepspeed: ZeRO stage {asked} is not on (found {stage}); start with `deepspeed pretrain.py`, "
                f"torchrun, mpirun, python3 or `accelerate launch --use_deepspeed --zero_stage {asked}`"
            )
        self._trainer.meter.start(state.global_step)
        config = engine._config  # DeepSpeed 0.19.8 has no public access to the config without "auto"
        resolved = {**config._param_dict, "zero_optimization": config.zero_config.model_dump(mode="json")}
        dtype, device = next(self._trainer.model.parameters()).dtype, self._trainer.args.device
        kernel = attention_kernel(self._trainer.run_config.layout, dtype=dtype, device=device)
        run_on_main(lambda: add_to_run_record(run_dir, ds_config_resolved=mask_all(resolved), attention=kernel))


class StepTimer(RunCallback):
    """Reports to the time split which part of a step runs.

    `make_event` makes CUDA events with a time; without it (None) the host computes, and its clock measures the
    optimizer too.
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
        self._trainer.meter.end_step()
        if self._events is not None and self._has_updated:
            start, end = self._events
            self._times.move(start.elapsed_time(end) / 1000, "forward_backward", "optimizer")
            self._has_updated = False


class RunSummary(RunCallback):
    """Logs speed, memory and the time split of this start, final evaluation and export included."""

    def __init__(self, trainer: PretrainingTrainer, metrics_log: MetricsLog) -> None:
        self._trainer = trainer
        self._metrics_log = metrics_log
        self._first_step = 0

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Remember the step."""
        self._first_step = state.global_step

    def log(self) -> None:
        """Log the summary as an event and as lines; called on every process, once nothing but the report is left."""
        state = self._trainer.state
        metrics = {"num_steps": state.global_step - self._first_step, **self._trainer.start_metrics()}
        if state.is_world_process_zero:
            self._metrics_log.write_event({"step": state.global_step, "event": "summary", **metrics})
            for line in summary_lines(metrics):
                logger.info(line)
