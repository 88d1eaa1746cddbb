"""Delete old checkpoints, and keep those where the decay of wsd begins and where a phase ends."""

from collections.abc import Callable
from pathlib import Path

from transformers import TrainerControl, TrainerState

from pretraining.runs.run_folder import SaveResult, checkpoint_step, rotate_checkpoints
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.training.trainer.hf_internals import RunCallback
from pretraining.training.trainer.trainer import PretrainingTrainer


class CheckpointRotation(RunCallback):
    """Saves the last step before the decay of wsd and of each phase, and keeps them: a run can be made longer there.

    On the main process it passes the step of each complete checkpoint to `after_save`, then deletes older ones.
    """

    def __init__(
        self, trainer: PretrainingTrainer, metrics_log: MetricsLog, *, after_save: Callable[[int], None] | None
    ) -> None:
        self._trainer = trainer
        self._run_config = trainer.run_config
        self._metrics_log = metrics_log
        self._after_save = after_save
        self._save_total_limit: int | None = None

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Take over the Trainer's rotation, which goes by file times and keeps no step.

        Also log, evaluate and save as the current flags ask: the Trainer would take the steps from the checkpoint.
        """
        args = self._trainer.args
        state.compute_steps(args, state.max_steps)
        self._save_total_limit, args.save_total_limit = args.save_total_limit, None
        self._trainer.saver.on_result = self._record_save

    def step_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Finish an earlier save that is written, and ask for the one before the decay."""
        self._trainer.saver.finish_if_written()
        if state.global_step in self._run_config.kept_steps and self._trainer.args.save_strategy != "no":
            control.should_save = True

    def save(self, state: TrainerState, control: TrainerControl) -> None:
        """Flush metrics.jsonl: a resume keeps the records up to this step."""
        if state.is_world_process_zero:
            self._metrics_log.sync()

    def train_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Wait for the last checkpoint."""
        with self._trainer.meter.pause("save"):
            self._trainer.saver.wait()

    def _record_save(self, result: SaveResult) -> None:
        if result.problem is not None:
            self._metrics_log.write_event({"step": result.step, "event": "save failed", "reason": result.problem})
            return
        saved = {"checkpoint": result.folder.name, "num_bytes": result.num_bytes, "seconds": round(result.seconds, 3)}
        self._metrics_log.write_event({"step": result.step, "event": "save", **saved})
        with self._trainer.meter.pause("save"):  # old checkpoints can take a disk long to remove
            if self._after_save is not None:
                self._after_save(result.step)
            self._rotate()

    def _rotate(self) -> None:
        state, args = self._trainer.state, self._trainer.args
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        kept = (*self._run_config.kept_steps, None if best is None else checkpoint_step(Path(best)))
        rotate_checkpoints(self._run_config.run_dir, keep_last=self._save_total_limit, keep_steps=kept)
