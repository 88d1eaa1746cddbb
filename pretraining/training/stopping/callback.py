"""Stop a run early: all processes agree on a step, save one checkpoint there, and a rerun resumes from it."""

import logging
from typing import Any

import torch
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from pretraining.cli.logs import LOGGED_AS_EVENT
from pretraining.runs.run_folder import STOP_NAME
from pretraining.runs.tracking.metrics_log import Logs, MetricsLog
from pretraining.system.supervision import run_started_at
from pretraining.training.metrics.evaluation import EvaluationAbandoned
from pretraining.training.metrics.step_metrics import callback_state
from pretraining.training.stopping.request import Phase, StopRequest, TimeLimit
from pretraining.training.trainer.hf_internals import RunCallback
from pretraining.training.trainer.trainer import PretrainingTrainer

LONG_SAVE_SECONDS = 20.0  # launchers kill 30 s after they asked to stop, and the step has to end too

logger = logging.getLogger(__name__)


class StopCallback(RunCallback, ExportableState):
    """Decides after each step, and before each batch of an evaluation, whether the run stops there.

    A stop does not wait for an evaluation: the checkpoint records that one is pending, and the resumed run starts with
    it.
    """

    def __init__(self, trainer: PretrainingTrainer, metrics_log: MetricsLog, request: StopRequest) -> None:
        self._trainer = trainer
        self._metrics_log = metrics_log
        self._request = request
        self._stop_file = trainer.run_config.run_dir / STOP_NAME
        self._limit = TimeLimit(trainer.run_config.arguments.durability.max_hours)
        self._is_temporary = trainer.run_config.arguments.plan.profile_plan  # its folder is removed at the end
        self._pending_evaluation = False
        self._first_step = 0
        self._warned_slow_save = False

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        attributes = {"owes_evaluation": self._pending_evaluation, "longest_save": self._limit.longest_save}
        return {"args": {}, "attributes": attributes}

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Restore what the checkpoint kept, and listen for requests."""
        args, saved = self._trainer.args, callback_state(state, StopCallback.__name__)
        self._pending_evaluation = saved.get("owes_evaluation", False) and args.eval_strategy != "no"
        self._limit.longest_save = saved.get("longest_save", 0.0)
        self._first_step = state.global_step
        args.eval_on_start = self._pending_evaluation or (args.eval_on_start and state.global_step == 0)
        if state.is_world_process_zero:
            if self._stop_file.exists() and self._stop_file.stat().st_mtime < run_started_at():
                self._stop_file.unlink()
                logger.warning("%s: existed before this start, so it was removed", self._stop_file)
            if (description := self._limit.description()) is not None:
                logger.info(description)
        self._request.begin_training()

    def step_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Start to time the step."""
        self._limit.begin_step()

    def step_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Stop here if any process was asked to."""
        self._limit.end_step()
        self._track_save_duration()
        if self._any_rank_requested(state):
            self._pending_evaluation = control.should_evaluate
            control.should_evaluate = False
            control.should_training_stop = True
            control.should_save = not self._is_temporary

    def prediction_step(self, state: TrainerState, control: TrainerControl) -> None:
        """Abandon the evaluation if any process was asked to stop.

        Raises:
            EvaluationAbandoned: in that case; the run stops, and the evaluation is pending.
        """
        if self._request.phase is Phase.TRAINING and self._any_rank_requested(state):
            self._pending_evaluation = True
            control.should_save = state.global_step > self._first_step  # otherwise there is nothing new to save
            control.should_training_stop = True
            self._trainer.loader.end()
            raise EvaluationAbandoned

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Logs = None, **kwargs: Any
    ) -> None:
        """Compare the pending evaluation with the best one, which the Trainer does not do at a start."""
        if self._pending_evaluation and self._request.phase is Phase.TRAINING:
            self._trainer.note_evaluation(metrics or {})
            self._pending_evaluation = False

    def epoch_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Keep a run that stops from loading its best checkpoint."""
        args = self._trainer.args
        args.load_best_model_at_end = args.load_best_model_at_end and not self._request.is_agreed

    def train_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Log the stop; nothing is left to be saved."""
        self._request.end_training()
        if self._request.is_agreed:
            step, saver = state.global_step, self._trainer.saver
            saved = f"checkpoint-{step} saved in {saver.last_seconds:.1f} s; " if saver.saved_step == step else ""
            then = f"{saved}rerun to {'measure' if self._is_temporary else 'resume'}"
            logger.warning("stopped at step %d (%s); %s", step, self._request.reason, then, extra=LOGGED_AS_EVENT)

    def _track_save_duration(self) -> None:
        """Record the longest save, and warn if it takes longer than launchers wait after a signal."""
        seconds = self._trainer.saver.longest_seconds
        self._limit.longest_save = max(self._limit.longest_save, seconds)
        if seconds > LONG_SAVE_SECONDS and not self._warned_slow_save:
            self._warned_slow_save = True
            logger.warning(
                "a save takes %.0f s, and launchers kill 30 s after Ctrl-C or SIGTERM: to stop this run, `touch %s`, "
                "or have SIGUSR1 sent early, e.g. by sbatch --signal=USR1@%d",
                seconds,
                self._stop_file,
                2 * seconds + 60,
            )

    def _any_rank_requested(self, state: TrainerState) -> bool:
        """Whether any process was asked to stop; the same on every process."""
        if state.is_world_process_zero:
            if self._stop_file.exists():
                self._request.request("the file STOP")
            if self._limit.is_reached():
                self._request.request("--max_hours")
        code = torch.tensor(self._request.code, device=self._trainer.args.device)
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
