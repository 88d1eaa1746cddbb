"""What happens at the end of each step: is it sound, what was in it if not, and does the run go back."""

import logging
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from pretraining.cli.logs import LOGGED_AS_EVENT
from pretraining.errors import UserError
from pretraining.runs.checksums import incomplete_reason
from pretraining.runs.run_folder import read_trainer_state
from pretraining.runs.tracking.console import describe_block
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.runs.tracking.reporters import purge_after
from pretraining.training.callbacks.anomaly_report import describe_blocks, gather_block_losses, worst_blocks
from pretraining.training.callbacks.sanity_checks import (
    check_first_loss,
    check_fresh_weights,
    check_rotary_positions,
    check_tiles,
)
from pretraining.training.checkpoint.finiteness import non_finite_state
from pretraining.training.distributed.collectives import broadcast_object, is_main_process
from pretraining.training.metrics.step_metrics import StepMetrics, StepResult, callback_state
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)


class AnomalyCallback(TrainerCallback, ExportableState):
    """Judges each step with the trainer's watch, reports a fault with its documents, and goes back if asked.

    It must stand after the Trainer's own callbacks, whose wish to log, save or evaluate it takes back with the step.
    """

    def __init__(self, trainer: PretrainingTrainer, metrics_log: MetricsLog) -> None:
        self._trainer = trainer
        self._plan = trainer.plan
        self._stream = trainer.data.stream
        self._metrics_log = metrics_log
        self._num_rollbacks = 0
        self._checkpoints: list[Path] = []
        trainer.on_non_finite = self._leave_non_finite

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: without it, a resumed run would read the skipped blocks."""
        num_blocks = self._plan.num_consumed(self._trainer.state.global_step)
        attributes = {
            "num_rollbacks": self._num_rollbacks,
            "skipped": self._stream.skipped,
            "num_blocks": num_blocks,
            "blocks_by_store": self._plan.blocks_by_store(num_blocks),
        }
        return {"args": {}, "attributes": attributes}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the data where the checkpoint left it; look at the model before its first step.

        Raises:
            UserError: when it is not one to train.
        """
        kept = callback_state(state, AnomalyCallback.__name__)
        self._num_rollbacks = kept.get("num_rollbacks", 0)
        self._checkpoints = [] if self._plan.start.checkpoint is None else [self._plan.start.checkpoint]
        self._stream.skipped = [(start, stop) for start, stop in kept.get("skipped", [])]
        self._trainer.loader.move_to(self._plan.num_consumed(state.global_step))
        self._check_start()
        check_rotary_positions(self._trainer.model)
        check_tiles(self._trainer)
        if state.global_step == 0 and self._plan.initial_weights is None:
            check_fresh_weights(self._trainer.model)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Judge the step that is over."""
        watch = self._trainer.watch
        was_skipped = self._trainer.accelerator.optimizer_step_was_skipped
        if was_skipped:
            self._plan.schedule.put_into(self._trainer.lr_scheduler, num_done=state.global_step)
        result = watch.finish_step(was_skipped=was_skipped)
        if state.global_step == 1 and self._plan.initial_weights is None:
            check_first_loss(result.loss, self._plan.config)
        if result.verdict is not None and not self._is_scale_search(result):
            with self._trainer.meter.pause():
                self._report(result, state.global_step)
                if result.verdict.fault == "non-finite":
                    self._trainer.check_finite()  # weights that are not finite never give a finite loss again
                elif self._rolls_back and (checkpoint := self._newest_checkpoint()) is not None:
                    self._check_may_roll_back(checkpoint, state.global_step)
                    self._roll_back(checkpoint, state.global_step)
                elif self._rolls_back:
                    logger.warning("step %d: no checkpoint to go back to yet, so the run continues", state.global_step)
        watch.forget_step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember what this run can go back to: others in its folder may be later, or of a run it went back in."""
        self._checkpoints.append(self._plan.run_dir / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at what is exported now: the last step may not have been saved.

        Raises:
            UserError: when it is not finite.
        """
        found = non_finite_state(self._trainer.model_wrapped)
        if found is not None:
            raise self._non_finite_error(found)

    @property
    def _on_spike(self) -> str:
        return self._plan.arguments.optimization.on_spike

    @property
    def _rolls_back(self) -> bool:
        return self._on_spike == "rollback"

    @property
    def _max_rollbacks(self) -> int:
        return self._plan.arguments.optimization.max_rollbacks

    def _check_start(self) -> None:
        found = non_finite_state(self._trainer.model_wrapped)
        if found is None:
            return
        checkpoint = self._plan.start.checkpoint
        if checkpoint is not None:
            raise UserError(f"--resume {checkpoint}: {found} is not finite (NaN or Inf); resume from an earlier one")
        raise UserError(f"--model {self._plan.arguments.model.model}: {found} is not finite (NaN or Inf); use another")

    def _leave_non_finite(self, found: str) -> None:
        """Go back to a checkpoint from weights or moments that are not finite: no later step is worth anything.

        Raises:
            UserError: when the run does not go back, or there is nothing to go back to.
        """
        step, checkpoint = self._trainer.state.global_step, self._newest_checkpoint()
        if self._trainer.is_world_process_zero():
            self._metrics_log.write_event({"step": step, "event": "non-finite state", "state": found})
        if not self._rolls_back or checkpoint is None or self._num_rollbacks >= self._max_rollbacks:
            raise self._non_finite_error(found)
        logger.warning("step %d: %s is not finite (NaN or Inf)", step, found, extra=LOGGED_AS_EVENT)
        self._roll_back(checkpoint, step)

    def _non_finite_error(self, found: str) -> UserError:
        step, checkpoint = self._trainer.state.global_step, self._newest_checkpoint()
        is_limited = self._rolls_back and self._num_rollbacks >= self._max_rollbacks
        place = f"--max_rollbacks {self._max_rollbacks}" if is_limited else f"--on_spike {self._on_spike}"
        remedy = "no good checkpoint was saved; start again with a lower --learning_rate"
        if checkpoint is not None:
            remedy = f"the last good checkpoint is {checkpoint}; resume from it with a lower --learning_rate"
            remedy += "" if self._rolls_back else " or with --on_spike rollback"
        return UserError(
            f"{place}: at step {step}, {found} is not finite (NaN or Inf), so the run ends without saving; {remedy}"
        )

    def _is_scale_search(self, result: StepResult) -> bool:
        """Whether fp16 looks for its loss scale: then steps are skipped though nothing is wrong with their blocks."""
        return self._plan.precision == "fp16" and math.isfinite(result.loss)

    def _report(self, result: StepResult, step: int) -> None:
        assert result.verdict is not None
        losses = gather_block_losses(
            self._trainer.watch.block_sums(), group_size=self._plan.batch.sequence_parallel_size
        )
        block_ids = self._stream.block_ids(self._plan.num_consumed(step - 1), self._plan.batch.blocks)
        if not self._trainer.is_world_process_zero():
            return
        guilty = worst_blocks(block_ids, losses)
        blocks = list(describe_blocks(guilty, self._trainer.data.train, self._trainer.data.mixture))
        self._metrics_log.write_event(
            {
                "step": step,
                "event": result.verdict.fault,
                "step_loss": result.loss,
                "score": result.verdict.score,
                "blocks": blocks,
            }
        )
        logger.warning("step %d: %s; its worst blocks:", step, _said(result), extra=LOGGED_AS_EVENT)
        for block in blocks:
            logger.warning("  %s", describe_block(block), extra=LOGGED_AS_EVENT)

    def _check_may_roll_back(self, checkpoint: Path, step: int) -> None:
        if self._num_rollbacks >= self._max_rollbacks:
            raise UserError(
                f"--max_rollbacks {self._max_rollbacks}: the loss spiked again at step {step} after "
                f"{self._max_rollbacks} rollbacks; look at the documents above, and resume from {checkpoint} with "
                "--on_spike warn or a lower --learning_rate"
            )

    def _roll_back(self, checkpoint: Path, step: int) -> None:
        """Go back to a checkpoint, and on without the blocks of this step and the one before.

        The one before, since its update may be what made this loss so high; PaLM skipped hundreds of batches
        (arXiv 2204.02311, section 5.1).

        Raises:
            UserError: when the checkpoint is not finite either.
        """
        num_consumed = self._plan.num_consumed
        kept = read_trainer_state(checkpoint)
        back_to = kept.global_step
        first = num_consumed(max(back_to, step - 2))
        self._stream.skip(first, num_consumed(step) - first)
        self._trainer.go_back_to(checkpoint, back_to)
        found = non_finite_state(self._trainer.model_wrapped)
        if found is not None:
            raise UserError(f"{checkpoint}: {found} is not finite (NaN or Inf); resume from an earlier checkpoint")
        num_spikes = self._trainer.watch.num_spikes  # what is skipped is not met again: the spike would be forgotten
        self._trainer.watch.restore(callback_state(kept, StepMetrics.__name__))
        self._trainer.watch.num_spikes = num_spikes
        self._trainer.loader.move_to(num_consumed(back_to))
        self._num_rollbacks += 1
        if self._trainer.is_world_process_zero():
            try:
                self._metrics_log.forget_after(back_to, kept.log_history)
            except OSError as error:
                logger.warning("metrics.jsonl: %s; it keeps the steps that are made again", error.strerror)
            purge_after(back_to, self._trainer.callback_handler.callbacks)
            event = {"step": step, "event": "rollback", "to_step": back_to, "rollback": self._num_rollbacks}
            self._metrics_log.write_event(event)
        logger.warning(
            "step %d: back to %s and on without the blocks of steps %d to %d (rollback %d of at most %d)",
            step,
            checkpoint,
            max(back_to, step - 2) + 1,
            step,
            self._num_rollbacks,
            self._max_rollbacks,
            extra=LOGGED_AS_EVENT,
        )

    def _newest_checkpoint(self) -> Path | None:
        """The same on every process, as the first one sees it, and however fast the disk is.

        It is finite: each was looked at before it was saved, and the first, which can be of before, when it was loaded.
        """
        self._trainer.saver.wait()
        complete = (folder for folder in reversed(self._checkpoints) if incomplete_reason(folder) is None)
        return broadcast_object(next(complete, None) if is_main_process() else None)


def _said(result: StepResult) -> str:
    assert result.verdict is not None
    if result.verdict.fault == "non-finite":
        what = "the loss" if not math.isfinite(result.loss) else "the gradient"
        return f"{what} is no number, so the step was skipped"
    return f"the loss is {result.loss:.4f}, {result.verdict.score:.1f} deviations above the last ones"
