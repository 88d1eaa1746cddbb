"""Checkpoints that are old enough are deleted, and what a save left unfinished."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.runs.run_folder import SaveResult, checkpoint_step, rotate_checkpoints
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.training.checkpoint.checkpointing import CheckpointingTrainer
from pretraining.training.config.run_config import RunConfig


class CheckpointRotation(TrainerCallback):
    """Saves the last step before wsd goes down, and keeps it: from there the run can be made longer.

    When a new one is complete, tells `after_save` of its step, and removes older ones. The first process does both.
    """

    def __init__(
        self,
        plan: RunConfig,
        trainer: CheckpointingTrainer,
        metrics_log: MetricsLog,
        *,
        after_save: Callable[[int], None],
    ) -> None:
        self._plan = plan
        self._tell_of_save = after_save
        self._trainer = trainer
        self._metrics_log = metrics_log
        self._save_total_limit: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the Trainer's rotation, which goes by the time of the files and keeps nothing else.

        And log, evaluate and save as the flags say now: the Trainer would do it as those of the checkpoint said.
        """
        state.compute_steps(args, state.max_steps)
        self._save_total_limit, args.save_total_limit = args.save_total_limit, None
        self._trainer.saver.on_result = self._after_save

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for the checkpoint; see whether an earlier one is written."""
        self._trainer.saver.finish_if_written()
        if state.global_step == self._plan.last_stable_step and args.save_strategy != "no":
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A resume keeps the records until here."""
        if state.is_world_process_zero:
            self._metrics_log.sync()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the last checkpoint."""
        with self._trainer.meter.pause("save"):
            self._trainer.saver.wait()

    def _after_save(self, result: SaveResult) -> None:
        if result.problem is not None:
            self._metrics_log.write_event({"step": result.step, "event": "save failed", "reason": result.problem})
            return
        saved = {"checkpoint": result.folder.name, "num_bytes": result.num_bytes, "seconds": round(result.seconds, 3)}
        self._metrics_log.write_event({"step": result.step, "event": "save", **saved})
        with self._trainer.meter.pause("save"):  # old checkpoints can take a disk long to remove
            self._tell_of_save(result.step)
            self._rotate()

    def _rotate(self) -> None:
        state, args = self._trainer.state, self._trainer.args
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        kept = (self._plan.last_stable_step, None if best is None else checkpoint_step(Path(best)))
        rotate_checkpoints(self._plan.run_dir, keep_last=self._save_total_limit, keep_steps=kept)
