"""The DeepSpeed config as the run resolved it, kept in the run folder."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.runs.run_record import add_to_run_record
from pretraining.system.privacy import mask_all
from pretraining.training.distributed.collectives import run_on_main
from pretraining.training.trainer.trainer import PretrainingTrainer


class DeepSpeedConfigRecorder(TrainerCallback):
    """Adds to run.json what DeepSpeed's engine really goes by, which is known only when there is one."""

    def __init__(self, trainer: PretrainingTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The config with nothing left to be "auto", and ZeRO's part with all its defaults.

        Raises:
            UserError: on every process, when it cannot be written.
        """
        config, run_dir = self._trainer.model_wrapped._config, self._trainer.plan.run_dir
        resolved = {**config._param_dict, "zero_optimization": config.zero_config.model_dump(mode="json")}
        run_on_main(lambda: add_to_run_record(run_dir, ds_config_resolved=mask_all(resolved)))
