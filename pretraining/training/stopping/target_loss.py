"""End a run once its loss is below --target_loss, or with an exit code if it never was."""

import logging

from transformers import DefaultFlowCallback, TrainerControl, TrainerState

from pretraining.errors import TARGET_MISSED_EXIT_CODE, UserError
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.training.config.run_config import RunConfig
from pretraining.training.metrics.step_metrics import TARGET_WINDOW_STEPS
from pretraining.training.trainer.hf_internals import RunCallback
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)


def check_target_loss(run: RunConfig) -> None:
    """Reject a target that the run is too short to reach.

    Raises:
        UserError: with the number of steps.
    """
    target = run.arguments.durability.target_loss
    if target is not None and run.num_steps < TARGET_WINDOW_STEPS and not run.arguments.plan.profile_plan:
        raise UserError(
            f"--target_loss {target:g}: is compared with the mean loss of {TARGET_WINDOW_STEPS} steps, and the run has "
            f"{run.num_steps}; use a longer run, or remove it"
        )


class TargetLoss(RunCallback):
    """Ends a run as after its last step, once the mean loss of the last 50 steps is below the target.

    The losses of these steps are in each checkpoint, so a resumed run ends at the same step as an uninterrupted one. A
    run that resumes from where the target was reached trains no further.
    """

    def __init__(self, trainer: PretrainingTrainer, metrics_log: MetricsLog, target: float) -> None:
        self._trainer = trainer
        self._metrics_log = metrics_log
        self._target = target

    @property
    def is_reached(self) -> bool:
        """Whether the mean loss is below the target; the same on every process."""
        mean = self._trainer.step_metrics.window_loss
        return mean is not None and mean < self._target

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Read no data if the checkpoint has reached the target; its export may be missing.

        Warn if too few losses are known: checkpoints of earlier versions have none.
        """
        num_known, num_left = self._trainer.step_metrics.num_window_losses, state.max_steps - state.global_step
        if self.is_reached:
            state.max_steps = state.global_step
            self._trainer.loader.end()
        elif 0 < num_left < TARGET_WINDOW_STEPS - num_known and state.is_world_process_zero:
            logger.warning(
                "--target_loss %g: will be missed: it needs %d losses, the checkpoint has %d, and %d steps are left; "
                "use a longer run, or remove it",
                self._target,
                TARGET_WINDOW_STEPS,
                num_known,
                num_left,
            )

    def step_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Log, evaluate and save as after the last step, and end."""
        if self.is_reached:
            state.max_steps = state.global_step
            DefaultFlowCallback().on_step_end(self._trainer.args, state, control)

    def train_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Record whether the target was reached, unless the run resumes later."""
        if state.global_step < state.max_steps or not state.is_world_process_zero:
            return
        mean = self._trainer.step_metrics.window_loss
        event = {"step": state.global_step, "event": f"target {'reached' if self.is_reached else 'missed'}"}
        self._metrics_log.write_event({**event, "target_loss": self._target, "mean_loss": mean})
        if self.is_reached:
            logger.info("--target_loss %g: reached at step %d (%s)", self._target, state.global_step, self._describe())

    def exit_code(self) -> int:
        """Log a target that was missed, after everything else; the exit code of the run."""
        if self.is_reached:
            return 0
        if self._trainer.is_world_process_zero():  # errors of all ranks are logged
            logger.error(
                "--target_loss %g: not reached (%s); the run is complete: train longer, or use another target",
                self._target,
                self._describe(),
            )
        return TARGET_MISSED_EXIT_CODE

    def _describe(self) -> str:
        mean = self._trainer.step_metrics.window_loss
        if mean is None:  # of NaN steps, or resumed from a checkpoint of an earlier version
            return f"fewer than {TARGET_WINDOW_STEPS} losses are known"
        return f"the mean loss of the last {TARGET_WINDOW_STEPS} steps is {mean:.4f}"
