"""When a checkpoint is saved besides every --save_steps, and which ones are kept."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.runs.checkpoints import checkpoint_step, rotate_checkpoints
from pretraining.training.run_plan import RunPlan


class CheckpointKeeper(TrainerCallback):
    """Saves the last step before wsd goes down, and keeps it: from there the run can be made longer."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._save_total_limit: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the Trainer's rotation, which goes by the time of the files and keeps nothing else."""
        self._save_total_limit, args.save_total_limit = args.save_total_limit, None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for the checkpoint."""
        if state.global_step == self._plan.last_stable_step and args.save_strategy != "no":
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remove checkpoints that are not kept."""
        if state.is_world_process_zero:
            best = state.best_model_checkpoint if args.load_best_model_at_end else None
            kept = (self._plan.last_stable_step, None if best is None else checkpoint_step(Path(best)))
            rotate_checkpoints(
                self._plan.run_dir, step=state.global_step, keep_last=self._save_total_limit, keep_steps=kept
            )
