"""Loss, accuracy and bits per byte of a whole split, in total and by source, each block counted exactly once.

In constant memory, and the same for any number of processes.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch.utils.data import Dataset

from pretraining.training.data.batch import Batch, model_inputs
from pretraining.training.data.dataset import IGNORED_LABEL, MixedBlocks
from pretraining.training.data.text_bytes import TextBytes
from pretraining.training.model.loss import NUM_SUMS, TokenLosses, source_sums, token_losses

logger = logging.getLogger(__name__)


class EvaluationAbandoned(Exception):  # noqa: N818 - nothing is wrong
    """An evaluation ends before its last batch, since the run stops."""


class EvaluationBlocks(Dataset):
    """Blocks filled up to whole micro batches on every process; the filling has no labels, so it counts nothing."""

    def __init__(self, blocks: MixedBlocks, *, text_bytes: TextBytes | None, multiple: int) -> None:
        self._blocks = blocks
        self._text_bytes = text_bytes
        self._length = -(-len(blocks) // multiple) * multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        is_filling = index >= len(self._blocks)
        number = 0 if is_filling else index
        item = self._blocks[number]
        if self._text_bytes is not None:
            item["num_bytes"] = torch.from_numpy(self._text_bytes.of(self._blocks, number, item["input_ids"].numpy()))
        return {**item, "labels": torch.full_like(item["labels"], IGNORED_LABEL)} if is_filling else item


def losses_by(model: torch.nn.Module) -> Callable[[Batch], TokenLosses]:
    """The token losses of a batch by a model that gives logits."""
    return lambda batch: token_losses(model(**model_inputs(batch, in_one_row=False)), batch["labels"])


@torch.no_grad()
def evaluate_blocks(
    losses_of: Callable[[Batch], TokenLosses],
    batches: Iterable[Batch],
    *,
    sources: Sequence[str],
    device: torch.device,
) -> dict[str, float]:
    """The figures of all blocks over all processes, and of each source when there are several.

    `losses_of` computes those of a micro batch that lies on the device.
    """
    sums = torch.zeros(len(sources), NUM_SUMS, dtype=torch.float64, device=device)
    for batch in batches:
        moved = {name: values.to(device, non_blocking=True) for name, values in batch.items()}
        sums += source_sums(losses_of(moved), moved, len(sources))
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return {**figures_of(sums.sum(dim=0).tolist()), **figures_by_source(sums, sources)}


def figures_by_source(sums: torch.Tensor, sources: Sequence[str]) -> dict[str, float]:
    """`loss/news` and so on, for each source of which there was something; nothing when there is one source alone."""
    if len(sources) == 1:
        return {}
    rows = zip(sources, sums.tolist(), strict=True)
    found = [(source, figures_of(row)) for source, row in rows if row[2]]
    return {f"{name}/{source}": value for source, figures in found for name, value in figures.items()}


def figures_of(sums: Sequence[float]) -> dict[str, float]:
    """What the sums of losses, right predictions, predictions and bytes say.

    Bits per byte are loss / ln 2 for each byte of the predicted text, so they do not depend on the tokenizer.
    """
    loss_sum, num_right, num_tokens, num_bytes = sums
    loss = loss_sum / num_tokens
    figures = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": num_right / num_tokens,
        "num_tokens": num_tokens,
    }
    return {**figures, "bits_per_byte": loss_sum / math.log(2) / num_bytes} if num_bytes else figures
