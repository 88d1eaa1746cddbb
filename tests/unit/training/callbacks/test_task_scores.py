"""What an evaluation gets of its tasks; whole runs are in tests/programs/monitor/test_task_scores.py."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pretraining.training.callbacks.task_scores import TaskScorer
from pretraining.training.data.batch import Batch
from pretraining.training.metrics.evaluation import EvaluationAbandoned
from pretraining.training.model.loss import TokenLosses, token_losses
from pretraining.training.tasks.requests import Request, TaskRequests

TASKS = [
    TaskRequests("t", [Request(np.arange(length, dtype=np.int32), 1) for length in (3, 10, 6)], lambda *_: {"n": 3})
]


class FakeTrainer(SimpleNamespace):
    """A trainer whose model gives every token the same probability; `batches` are those that it saw."""

    def __init__(
        self,
        *,
        masks_documents: bool = False,
        stops: bool = False,
        loads_best: bool = False,
        evaluates_first: bool = False,
        block_length: int = 5,
    ) -> None:
        batch = SimpleNamespace(sequence_parallel_size=1, block_length=block_length, num_groups=1)
        data = SimpleNamespace(document_masking=masks_documents)
        config = SimpleNamespace(max_position_embeddings=16)
        super().__init__(
            run_config=SimpleNamespace(batch=batch, config=config, arguments=SimpleNamespace(data=data)),
            args=SimpleNamespace(
                per_device_eval_batch_size=2,
                device=torch.device("cpu"),
                process_index=0,
                load_best_model_at_end=loads_best,
                eval_on_start=evaluates_first,
            ),
            state=SimpleNamespace(global_step=3),
            data=SimpleNamespace(stream=SimpleNamespace(skipped=[])),
            control=None,
            callback_handler=SimpleNamespace(on_prediction_step=self.prediction_step),
            eager_evaluation=nullcontext,
            has_loss_tiles=True,
            stops=stops,
            events=[],
            batches=[],
        )

    def prediction_step(self, *_: Any) -> None:
        self.events.append(len(self.batches))
        if self.stops:
            raise EvaluationAbandoned

    def token_losses(self, _engine: Any, batch: Batch, *, in_tiles: bool) -> TokenLosses:
        assert in_tiles
        self.batches.append(batch)
        return token_losses(SimpleNamespace(logits=torch.zeros(*batch["labels"].shape, 16)), batch["labels"])


def test_batches_are_as_large_as_those_of_the_evaluation_each_after_an_event() -> None:
    trainer: Any = FakeTrainer()
    found = TaskScorer(trainer, TASKS).score()
    assert found.pop("task_seconds") >= 0
    assert found == {"task/t/n": 3}
    assert [tuple(batch["input_ids"].shape) for batch in trainer.batches] == [(1, 9), (2, 5)]
    assert trainer.events == [0, 1]
    assert all("position_ids" not in batch for batch in trainer.batches)


def test_with_masked_documents_each_text_is_one() -> None:
    trainer: Any = FakeTrainer(masks_documents=True)
    TaskScorer(trainer, TASKS).score()
    assert [batch["document_bounds"].tolist() for batch in trainer.batches] == [[0, 9], [0, 5, 10]]


def test_a_stop_abandons_the_evaluation() -> None:
    trainer: Any = FakeTrainer(stops=True)
    with pytest.raises(EvaluationAbandoned):
        TaskScorer(trainer, TASKS).score()


@pytest.mark.parametrize(("block_length", "evaluates_first"), [(3, False), (3, True), (5, False)])
def test_a_text_longer_than_a_batch_is_a_warning(
    block_length: int, evaluates_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """9 tokens, and batches of two blocks."""
    trainer: Any = FakeTrainer(block_length=block_length, evaluates_first=evaluates_first)
    TaskScorer(trainer, TASKS)
    warns = block_length == 3 and not evaluates_first
    assert ("a text of 9 tokens is longer than the 6 of an evaluation batch" in caplog.text) == warns
    assert bool(caplog.records) == warns


def test_without_tasks_nothing_is_added() -> None:
    trainer: Any = FakeTrainer()
    assert TaskScorer(trainer, []).score() == {}


@pytest.mark.parametrize("loads_best", [False, True])
def test_the_same_weights_are_scored_once(loads_best: bool) -> None:
    """A step has other weights after a rollback, and --load_best_model_at_end loads others without a step."""
    trainer: Any = FakeTrainer(loads_best=loads_best)
    scorer = TaskScorer(trainer, TASKS)
    num_batches = []
    for step, skipped in ((3, []), (4, []), (4, []), (4, [(6, 8)])):
        trainer.state.global_step, trainer.data.stream.skipped = step, skipped
        assert scorer.score()["task/t/n"] == 3
        num_batches.append(len(trainer.batches))
    assert num_batches == ([2, 4, 6, 8] if loads_best else [2, 4, 4, 6])
