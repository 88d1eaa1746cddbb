"""The start and the end of a training: the engine that was made, the clock, and the summary."""

import logging

from deepspeed import DeepSpeedEngine
from transformers import TrainerControl, TrainerState

from pretraining.errors import UserError
from pretraining.runs.run_record import add_to_run_record
from pretraining.runs.tracking.console import summary_lines
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.system.privacy import mask_all
from pretraining.training.distributed.collectives import run_on_main
from pretraining.training.trainer.run_callback import RunCallback
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)


class RunStart(RunCallback):
    """Checks DeepSpeed's engine, records its resolved config in run.json, and starts the clock."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Check, start, record.

        Raises:
            UserError: when ZeRO-3 is off, or run.json cannot be written; on every process.
        """
        engine, run_dir = self._trainer.model_wrapped, self._trainer.run_config.run_dir
        check_zero_stage(engine)
        self._trainer.meter.start(state.global_step)
        config = engine._config  # DeepSpeed 0.19.8 has no public access to the config without "auto"
        resolved = {**config._param_dict, "zero_optimization": config.zero_config.model_dump(mode="json")}
        run_on_main(lambda: add_to_run_record(run_dir, ds_config_resolved=mask_all(resolved)))


def check_zero_stage(engine: object) -> None:
    """Raise unless an engine runs ZeRO-3; some launchers silently drop the config.

    Raises:
        UserError: with the stage that was found.
    """
    stage = engine.zero_optimization_stage() if isinstance(engine, DeepSpeedEngine) else None
    if stage != 3:
        raise UserError(
            f"--deepspeed: ZeRO stage 3 is not on (found {stage}); start with `deepspeed pretrain.py`, torchrun, "
            "mpirun or python3, not with accelerate launch"
        )


class RunSummary(RunCallback):
    """Logs speed, memory and the time split of this start at the end of the training, also of a stopped one."""

    def __init__(self, trainer: PretrainingTrainer, metrics_log: MetricsLog) -> None:
        self._metrics = trainer.run_metrics
        self._metrics_log = metrics_log
        self._first_step = 0

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Remember the step."""
        self._first_step = state.global_step

    def train_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Log the summary as an event and as lines."""
        metrics = {"num_steps": state.global_step - self._first_step, **self._metrics.of_this_start()}
        if state.is_world_process_zero:
            self._metrics_log.write_event({"step": state.global_step, "event": "summary", **metrics})
            for line in summary_lines(metrics):
                logger.info(line)
