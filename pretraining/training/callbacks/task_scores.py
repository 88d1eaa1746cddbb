"""--eval_tasks: score downstream tasks with the model in training, as part of each evaluation of the validation split.

An evaluation that a stop abandons has no scores; it is pending together with its tasks. Nothing here draws random
numbers, and the model is in evaluation mode, so the losses of the training are the same with tasks and without.
"""

import logging
import time
from collections.abc import Sequence
from functools import partial

import torch

from pretraining.training.callbacks.samples import continue_if_all_failed
from pretraining.training.data.batch import BOUNDS, Batch
from pretraining.training.metrics.evaluation import EvaluationAbandoned
from pretraining.training.model.loss import TokenLosses
from pretraining.training.model.sequence_parallel import part_of_batch
from pretraining.training.tasks.requests import BatchShapes, TaskRequests
from pretraining.training.tasks.scoring import RequestScorer, length_multiple
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)


class TaskScorer:
    """Scores tasks on all processes, in batches as large as those of the evaluation.

    A text that is longer than such a batch is one by itself and needs more memory, of which a start warns. It is not
    cut: the scores are those of tools.evaluate.
    """

    def __init__(self, trainer: PretrainingTrainer, tasks: Sequence[TaskRequests]) -> None:
        batch = trainer.run_config.batch
        self._trainer = trainer
        self._tasks = tasks
        self._last: tuple[tuple[int, int], dict[str, float]] | None = None
        self._num_parts = batch.sequence_parallel_size
        self._shapes = BatchShapes(
            max_tokens=trainer.args.per_device_eval_batch_size * batch.block_length,
            num_positions=trainer.run_config.config.max_position_embeddings,
            multiple=length_multiple(trainer.args.device),
            num_parts=self._num_parts,
        )
        self._warn_of_long_texts()

    def _warn_of_long_texts(self) -> None:
        """Name the longest text that is longer than a batch, unless it is scored before the first step anyway."""
        longest = max((one.num_inputs for task in self._tasks for one in task.requests), default=0)
        if longest > self._shapes.max_tokens and not self._trainer.args.eval_on_start:
            logger.warning(
                "--eval_tasks: a text of %s tokens is longer than the %s of an evaluation batch, and needs more "
                "memory; pass --eval_on_start to score all texts before the first step",
                f"{longest:,}",
                f"{self._shapes.max_tokens:,}",
            )

    def score(self) -> dict[str, float]:
        """The metrics of all tasks, and `task_seconds`; none after a failure, which does not end the training.

        The same weights are scored once: with --eval_blocks, those of the last step are evaluated twice. A step that is
        reached again after a rollback has other weights, and so has the best model that is loaded at the end.

        Raises:
            EvaluationAbandoned: when the run stops.
        """
        trainer = self._trainer
        at = trainer.state.global_step, sum(stop - start for start, stop in trainer.data.stream.skipped)
        if self._last is None or self._last[0] != at or trainer.args.load_best_model_at_end:
            self._last = at, self._score() if self._tasks else {}
        return self._last[1]

    def _score(self) -> dict[str, float]:
        started_at, step = time.monotonic(), self._trainer.state.global_step
        try:
            with self._trainer.eager_evaluation() as engine:
                scorer = RequestScorer(
                    partial(self._losses_of, engine),
                    self._shapes,
                    self._trainer.args.device,
                    group=self._trainer.args.process_index // self._num_parts,
                    num_groups=self._trainer.run_config.batch.num_groups,
                )
                metrics = scorer.tasks(self._tasks)
        except EvaluationAbandoned:
            raise
        except Exception as error:  # whatever it is, on one process or on all of them
            continue_if_all_failed(self._trainer, f"tasks of step {step}", error)
            self._tasks = []
            logger.warning("step %d: --eval_tasks failed (%s) and is disabled; training continues", step, error)
            return {}
        return {**metrics, "task_seconds": round(time.monotonic() - started_at, 6)}

    def _losses_of(self, engine: torch.nn.Module, batch: Batch) -> TokenLosses:
        """The losses of this process's part of a batch, with an event for the callbacks before it."""
        trainer, num_parts = self._trainer, self._num_parts
        trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
        if trainer.run_config.arguments.data.document_masking:  # each text is one document
            rows, width = batch["input_ids"].shape
            bounds = torch.arange(rows + 1, dtype=torch.int32) * width
            batch = {**batch, "position_ids": torch.arange(width).repeat(rows, 1), BOUNDS: bounds}
        if num_parts > 1:
            batch = part_of_batch(batch, rank=trainer.args.process_index % num_parts, size=num_parts)
        moved = {name: values.to(trainer.args.device) for name, values in batch.items()}
        return trainer.token_losses(engine, moved, in_tiles=trainer.has_loss_tiles)
