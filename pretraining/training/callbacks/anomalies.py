"""Check each step: report NaN, Inf and loss spikes with their documents, and roll back where --on_spike asks for it."""

import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState
from transformers.trainer_callback import ExportableState

from pretraining.cli.logs import LOGGED_AS_EVENT
from pretraining.errors import UserError
from pretraining.runs.checksums import incomplete_reason
from pretraining.runs.tracking.console import describe_block
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.runs.tracking.reporters import purge_after
from pretraining.training.callbacks.anomaly_report import describe_blocks, gather_block_losses, worst_blocks
from pretraining.training.callbacks.parent_checks import check_first_loss_of_parent, check_parent
from pretraining.training.callbacks.sanity_checks import (
    check_first_loss,
    check_fresh_weights,
    check_rotary_positions,
    check_tiles,
)
from pretraining.training.checkpoint.finiteness import non_finite_state
from pretraining.training.distributed.collectives import broadcast_object, is_main_process
from pretraining.training.metrics.step_metrics import StepResult, callback_state
from pretraining.training.trainer.hf_internals import RunCallback
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)


class AnomalyCallback(RunCallback, ExportableState):
    """Classifies each step, reports an anomaly with its documents, and rolls back if asked."""

    def __init__(self, trainer: PretrainingTrainer, metrics_log: MetricsLog) -> None:
        self._trainer = trainer
        self._run_config = trainer.run_config
        self._stream = trainer.data.stream
        self._metrics_log = metrics_log
        flags = trainer.run_config.arguments.optimization
        self._on_spike, self._max_rollbacks = flags.on_spike, flags.max_rollbacks
        self._rolls_back = flags.on_spike == "rollback"
        self._num_rollbacks = 0
        self._checkpoints: list[Path] = []
        trainer.on_non_finite = self._leave_non_finite

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: without it, a resumed run would read the skipped blocks."""
        num_blocks = self._run_config.num_consumed(self._trainer.state.global_step)
        attributes = {
            "num_rollbacks": self._num_rollbacks,
            "skipped": self._stream.skipped,
            "num_blocks": num_blocks,
            "blocks_by_store": self._run_config.blocks_by_store(num_blocks),
            "order": asdict(self._stream.order.at(num_blocks).record()),
        }
        return {"args": {}, "attributes": attributes}

    def train_begin(self, state: TrainerState, control: TrainerControl) -> None:
        """Move the data to where the checkpoint left it, and check the model before its first step.

        Raises:
            UserError: when the model cannot be trained.
        """
        saved = callback_state(state, AnomalyCallback.__name__)
        checkpoint, model = self._run_config.start.checkpoint, self._trainer.model
        self._num_rollbacks = saved.get("num_rollbacks", 0)
        self._checkpoints = [] if checkpoint is None else [checkpoint]
        self._stream.skipped = [(start, stop) for start, stop in saved.get("skipped", [])]
        self._trainer.loader.move_to(self._run_config.num_consumed(state.global_step))
        found = non_finite_state(self._trainer.model_wrapped)
        if found is not None:
            flag, remedy = f"--resume {checkpoint}", "resume from an earlier checkpoint"
            if checkpoint is None:
                flag, remedy = self._run_config.arguments.model.place, "use another model"
            raise UserError(f"{flag}: {found} is not finite (NaN or Inf); {remedy}")
        check_rotary_positions(model)
        check_tiles(self._trainer)
        if state.global_step == 0 and self._run_config.arguments.parent is None:
            check_fresh_weights(model)
        elif state.global_step == 0:
            check_parent(self._trainer)

    def step_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Classify the step, and report or undo it."""
        trainer, step = self._trainer, state.global_step
        was_skipped = trainer.accelerator.optimizer_step_was_skipped
        if was_skipped:
            self._run_config.schedule.put_into(trainer.lr_scheduler, num_done=step)
        result = trainer.step_metrics.finish_step(was_skipped=was_skipped)
        if step == 1 and self._run_config.arguments.parent is None:
            check_first_loss(result.loss, self._run_config.config)
        elif step == 1:
            check_first_loss_of_parent(trainer, result.loss)
        if result.anomaly is not None and not self._is_scale_search(result):
            with trainer.meter.pause():
                self._handle(result, step)
        trainer.step_metrics.clear_step()

    def save(self, state: TrainerState, control: TrainerControl) -> None:
        """Remember the checkpoints of this run: others in its folder may be later, or of a run that was rolled back."""
        self._checkpoints.append(self._run_config.run_dir / f"checkpoint-{state.global_step}")

    def train_end(self, state: TrainerState, control: TrainerControl) -> None:
        """Check what is exported next: the last step may not have been saved.

        Raises:
            UserError: when it is not finite.
        """
        found = non_finite_state(self._trainer.model_wrapped)
        if found is not None:
            raise self._non_finite_error(found)

    def _is_scale_search(self, result: StepResult) -> bool:
        """Whether fp16 is searching for its loss scale: it skips steps whose blocks are fine."""
        return self._run_config.precision == "fp16" and math.isfinite(result.loss)

    def _handle(self, result: StepResult, step: int) -> None:
        assert result.anomaly is not None
        self._report(result, step)
        if result.anomaly.kind == "non-finite":
            self._trainer.check_finite()  # weights that are not finite never give a finite loss again
        elif self._rolls_back and (checkpoint := self._newest_checkpoint()) is not None:
            if self._num_rollbacks >= self._max_rollbacks:
                raise UserError(
                    f"--max_rollbacks {self._max_rollbacks}: the loss spiked again at step {step} after "
                    f"{self._max_rollbacks} rollbacks; look at the documents above, then resume from {checkpoint} with "
                    "--on_spike warn or a lower --learning_rate"
                )
            self._roll_back(checkpoint, step)
        elif self._rolls_back:
            logger.warning("step %d: no checkpoint to roll back to yet; training continues", step)

    def _leave_non_finite(self, found: str) -> None:
        """Roll back from weights or optimizer state that are not finite: no later step would be of use.

        Raises:
            UserError: when the run does not roll back, or has no checkpoint.
        """
        step, checkpoint = self._trainer.state.global_step, self._newest_checkpoint()
        if is_main_process():
            self._metrics_log.write_event({"step": step, "event": "non-finite state", "state": found})
        if not self._rolls_back or checkpoint is None or self._num_rollbacks >= self._max_rollbacks:
            raise self._non_finite_error(found)
        logger.warning("step %d: %s is not finite (NaN or Inf)", step, found, extra=LOGGED_AS_EVENT)
        self._roll_back(checkpoint, step)

    def _non_finite_error(self, found: str) -> UserError:
        step, checkpoint = self._trainer.state.global_step, self._newest_checkpoint()
        is_limited = self._rolls_back and self._num_rollbacks >= self._max_rollbacks
        flag = f"--max_rollbacks {self._max_rollbacks}" if is_limited else f"--on_spike {self._on_spike}"
        remedy = "no good checkpoint was saved; start again with a lower --learning_rate"
        if checkpoint is not None:
            remedy = f"the last good checkpoint is {checkpoint}; resume from it with a lower --learning_rate"
            remedy += "" if self._rolls_back else " or with --on_spike rollback"
        return UserError(
            f"{flag}: at step {step}, {found} is not finite (NaN or Inf), so the run ends without saving; {remedy}"
        )

    def _report(self, result: StepResult, step: int) -> None:
        assert result.anomaly is not None
        batch, data = self._run_config.batch, self._trainer.data
        losses = gather_block_losses(self._trainer.step_metrics.block_sums(), group_size=batch.sequence_parallel_size)
        block_ids = self._stream.block_ids(self._run_config.num_consumed(step - 1), batch.blocks)
        if not is_main_process():
            return
        blocks = list(describe_blocks(worst_blocks(block_ids, losses), data.train, data.mixture))
        anomaly = {"event": result.anomaly.kind, "step_loss": result.loss, "score": result.anomaly.score}
        self._metrics_log.write_event({"step": step, **anomaly, "blocks": blocks})
        logger.warning("step %d: %s; its worst blocks:", step, _describe(result), extra=LOGGED_AS_EVENT)
        for block in blocks:
            logger.warning("  %s", describe_block(block), extra=LOGGED_AS_EVENT)

    def _roll_back(self, checkpoint: Path, step: int) -> None:
        """Return to a checkpoint, and skip the blocks of this step and the one before, whose update may be the cause.

        PaLM skipped hundreds of batches (arXiv 2204.02311, section 5.1).

        Raises:
            UserError: when the checkpoint is not finite either.
        """
        to_step = self._trainer.rewind(checkpoint, skip_from=step - 2)
        found = non_finite_state(self._trainer.model_wrapped)
        if found is not None:
            raise UserError(f"{checkpoint}: {found} is not finite (NaN or Inf); resume from an earlier checkpoint")
        self._num_rollbacks += 1
        if is_main_process():
            self._rewind_logs(step, to_step)
        logger.warning(
            "step %d: rolled back to %s; skipping the blocks of steps %d-%d (rollback %d of at most %d)",
            step,
            checkpoint,
            max(to_step, step - 2) + 1,
            step,
            self._num_rollbacks,
            self._max_rollbacks,
            extra=LOGGED_AS_EVENT,
        )

    def _rewind_logs(self, step: int, to_step: int) -> None:
        try:
            self._metrics_log.forget_after(to_step, self._trainer.state.log_history)
        except OSError as error:
            logger.warning("metrics.jsonl: %s; it keeps the records of steps that are repeated", error.strerror)
        purge_after(to_step, self._trainer.callback_handler.callbacks)
        event = {"step": step, "event": "rollback", "to_step": to_step, "rollback": self._num_rollbacks}
        self._metrics_log.write_event(event)

    def _newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint of this run, as the main process sees it; the same on every process.

        It is finite: each was checked before it was saved, and the one that was resumed from when it was loaded.
        """
        self._trainer.saver.wait()
        complete = (folder for folder in reversed(self._checkpoints) if incomplete_reason(folder) is None)
        return broadcast_object(next(complete, None) if is_main_process() else None)


def _describe(result: StepResult) -> str:
    assert result.anomaly is not None
    if result.anomaly.kind == "non-finite":
        return f"{'gradient' if math.isfinite(result.loss) else 'loss'} is NaN or Inf; step skipped"
    return f"loss {result.loss:.4f} is a spike, {result.anomaly.score:.1f} deviations above the last steps"
