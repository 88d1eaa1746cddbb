"""Score a loaded model on downstream tasks, by the code that scores them during training, and show the scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pretraining.runs.tracking.metrics_file import TASK_FORMATS, format_task, task_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from pretraining.training.tasks.files import FileTask, HarnessTask

TaskScores = dict[str, dict[str, Any]]  # the metrics of each task
COUNT = "num_examples"


def score_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tasks: Sequence[FileTask | HarnessTask],
    *,
    batch_tokens: int,
) -> TaskScores:
    """The metrics of each task; batches have at most `batch_tokens`, padding included, or else one text.

    Raises:
        UserError: if a text does not fit the model, or a task of lm-evaluation-harness cannot be loaded.
    """
    from pretraining.training.data.batch import Batch
    from pretraining.training.metrics.evaluation import losses_by
    from pretraining.training.model.loss import TokenLosses
    from pretraining.training.tasks.encoding import encode_tasks
    from pretraining.training.tasks.requests import BatchShapes
    from pretraining.training.tasks.scoring import RequestScorer, length_multiple

    def losses_of(batch: Batch) -> TokenLosses:
        return losses_by(model)({name: values.to(model.device) for name, values in batch.items()})

    positions = model.config.max_position_embeddings
    requests = encode_tasks(tasks, tokenizer, num_positions=positions, flag="--tasks")
    shapes = BatchShapes(batch_tokens, positions, multiple=length_multiple(model.device))
    return task_metrics(RequestScorer(losses_of, shapes, model.device).tasks(requests))


def task_lines(scores: Mapping[str, TaskScores]) -> Iterator[str]:
    """A row per model and task, in aligned columns; the models are named if there are several."""
    rows = [(model, name, metrics) for model, found in scores.items() for name, metrics in found.items()]
    if not rows:
        return
    columns = [metric for metric in TASK_FORMATS if any(metric in metrics for _, _, metrics in rows)]
    headings = ["model", "task", *(column.replace("_", " ") for column in columns), "examples"]
    cells = [headings]
    for model, name, metrics in rows:
        shown = format_task(metrics)
        cells.append([model, name, *(shown.get(column, "") for column in columns), f"{metrics.get(COUNT, 0):,}"])
    if len(scores) == 1:
        cells = [row[1:] for row in cells]
    num_names = len(cells[0]) - len(columns) - 1
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        aligned = [
            cell.ljust(width) if place < num_names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(aligned)
