"""A run stops as if nothing had happened: one checkpoint at the end of a step, the same on all processes."""

import logging
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from pretraining.cli.logs import LOGGED_AS_EVENT
from pretraining.runs.run_folder import STOP_NAME
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.system.supervision import run_started_at
from pretraining.training.metrics.evaluation import EvaluationAbandoned
from pretraining.training.metrics.step_metrics import callback_state
from pretraining.training.stopping.request import Phase, StopRequest
from pretraining.training.stopping.time_limit import TimeLimit
from pretraining.training.trainer.trainer import PretrainingTrainer

LONG_SAVE_SECONDS = 20.0  # launchers kill 30 s after they asked, and the step has to end too

logger = logging.getLogger(__name__)


class StopCallback(TrainerCallback, ExportableState):
    """Has all processes agree at each step, and at each batch of an evaluation, whether the run stops there.

    It must stand after whatever asks for an evaluation or a save. An evaluation is not waited for: a checkpoint
    remembers that it is owed, and the run that goes on makes it first.
    """

    def __init__(self, trainer: PretrainingTrainer, metrics_log: MetricsLog, request: StopRequest) -> None:
        self._trainer = trainer
        self._metrics_log = metrics_log
        self._request = request
        self._stop_file = trainer.plan.run_dir / STOP_NAME
        self._limit = TimeLimit(trainer.plan.arguments.durability.max_hours)
        self._owes_evaluation = False
        self._began_at = 0
        self._said_long = False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        attributes = {"owes_evaluation": self._owes_evaluation, "longest_save": self._limit.longest_save}
        return {"args": {}, "attributes": attributes}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what the checkpoint kept, and listen."""
        kept = callback_state(state, StopCallback.__name__)
        self._owes_evaluation = kept.get("owes_evaluation", False) and args.eval_strategy != "no"
        self._limit.longest_save = kept.get("longest_save", 0.0)
        self._began_at = state.global_step
        args.eval_on_start = self._owes_evaluation or (args.eval_on_start and state.global_step == 0)
        if state.is_world_process_zero:
            if self._stop_file.exists() and self._stop_file.stat().st_mtime < run_started_at():
                self._stop_file.unlink()
                logger.warning("%s: was there before the start, so it is removed", self._stop_file)
            if (described := self._limit.described()) is not None:
                logger.info(described)
        self._request.begin_training()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure it."""
        self._limit.begin_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop here, if anybody asked."""
        self._limit.end_step()
        self._look_at_saves()
        if self._agree(args, state):
            self._owes_evaluation = control.should_evaluate
            control.should_evaluate = False
            control.should_save = control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the evaluation, if anybody asked.

        Raises:
            EvaluationAbandoned: then; the run stops, and it is owed.
        """
        if self._request.phase is Phase.TRAINING and self._agree(args, state):
            self._owes_evaluation = True
            control.should_save = state.global_step > self._began_at  # otherwise it goes on from where it began
            control.should_training_stop = True
            self._trainer.loader.end()
            raise EvaluationAbandoned

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Judge the evaluation that was owed as the Trainer would have, which it does not do at a start."""
        if self._owes_evaluation and self._request.phase is Phase.TRAINING:
            self._trainer._determine_best_metric(metrics=metrics or {}, trial=None)
            self._owes_evaluation = False

    def _look_at_saves(self) -> None:
        """Learn what a save takes, and say it where that is more than a signal leaves."""
        seconds = self._trainer.saver.longest_seconds
        self._limit.longest_save = max(self._limit.longest_save, seconds)
        if seconds > LONG_SAVE_SECONDS and not self._said_long:
            self._said_long = True
            logger.warning(
                "a save takes %.0f s, and launchers kill 30 s after Ctrl-C or SIGTERM: to stop this run, `touch %s`, "
                "or have SIGUSR1 sent early, as sbatch --signal=USR1@%d does",
                seconds,
                self._stop_file,
                2 * seconds + 60,
            )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run that stops does not load its best checkpoint."""
        args.load_best_model_at_end = args.load_best_model_at_end and not self._request.is_agreed

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Nothing is left to be saved."""
        self._request.end_training()
        if self._request.is_agreed:
            step, saver = state.global_step, self._trainer.saver
            saved = f"checkpoint-{step} saved in {saver.last_seconds:.1f} s; " if saver.saved_step == step else ""
            said = "stopped at step %d (%s); %sthe same command goes on"
            logger.warning(said, step, self._request.reason, saved, extra=LOGGED_AS_EVENT)

    def _agree(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether any process was asked to stop; all come to the same answer."""
        if state.is_world_process_zero:
            if self._stop_file.exists():
                self._request.ask("the file STOP")
            if self._limit.is_reached():
                self._request.ask("--max_hours")
        code = torch.tensor(self._request.code, device=args.device)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(code, torch.distributed.ReduceOp.MAX)
        if not code:
            return False
        self._request.code, self._request.is_agreed = int(code), True
        if state.is_world_process_zero:
            self._stop_file.unlink(missing_ok=True)
            stop = {"step": state.global_step, "event": "stop", "reason": self._request.reason}
            self._metrics_log.write_event(stop, is_new=True)
        return True
