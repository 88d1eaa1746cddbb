"""Loss, accuracy and bits per byte of a whole split, in total and by source; each block counts exactly once.

Takes constant memory; the result does not depend on the number of processes.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch.utils.data import Dataset

from pretraining.training.data.batch import Batch, model_inputs
from pretraining.training.data.dataset import IGNORED_LABEL, MixedBlocks
from pretraining.training.data.text_bytes import TextBytes
from pretraining.training.model.loss import NUM_SUMS, TokenLosses, source_sums, token_losses


class EvaluationAbandoned(Exception):  # noqa: N818 - not an error
    """Raised when an evaluation ends before its last batch because the run stops."""


class EvaluationBlocks(Dataset):
    """Blocks padded to whole micro batches on every process; blocks of the padding have no labels, so no weight."""

    def __init__(self, blocks: MixedBlocks, *, text_bytes: TextBytes | None, multiple: int) -> None:
        self._blocks = blocks
        self._text_bytes = text_bytes
        self._length = -(-len(blocks) // multiple) * multiple
        # A metric that marks an evaluation of a part of the split: it is comparable only with others of that part.
        self.mark = {"blocks": len(blocks)} if blocks.is_partial else {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Batch:
        is_padding = index >= len(self._blocks)
        number = 0 if is_padding else index
        item = self._blocks[number]
        if self._text_bytes is not None:
            item["num_bytes"] = torch.from_numpy(self._text_bytes.of(self._blocks, number, item["input_ids"].numpy()))
        return {**item, "labels": torch.full_like(item["labels"], IGNORED_LABEL)} if is_padding else item


def losses_by(model: torch.nn.Module) -> Callable[[Batch], TokenLosses]:
    """A function that computes the token losses of a batch with a model that returns logits."""
    return lambda batch: token_losses(model(**model_inputs(batch, in_one_row=False)), batch["labels"])


@torch.no_grad()
def evaluate_blocks(
    losses_of: Callable[[Batch], TokenLosses], batches: Iterable[Batch], *, sources: Sequence[str], device: torch.device
) -> dict[str, float]:
    """The metrics of all blocks over all processes, and of each source when there are several.

    `losses_of` computes the token losses of a micro batch on the device.
    """
    sums = torch.zeros(len(sources), NUM_SUMS, dtype=torch.float64, device=device)
    for batch in batches:
        moved = {name: values.to(device, non_blocking=True) for name, values in batch.items()}
        sums += source_sums(losses_of(moved), moved, len(sources))
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return {**metrics_of_sums(sums.sum(dim=0).tolist()), **metrics_by_source(sums, sources)}


def metrics_by_source(sums: torch.Tensor, sources: Sequence[str]) -> dict[str, float]:
    """`loss/news` and so on, for each source with predictions; empty when there is only one source."""
    if len(sources) == 1:
        return {}
    rows = zip(sources, sums.tolist(), strict=True)
    found = [(source, metrics_of_sums(row)) for source, row in rows if row[2]]
    return {f"{name}/{source}": value for source, metrics in found for name, value in metrics.items()}


def metrics_of_sums(sums: Sequence[float]) -> dict[str, float]:
    """The metrics that follow from the sums of losses, correct predictions, predictions and bytes.

    Bits per byte are loss / ln 2 per byte of the predicted text, so they do not depend on the tokenizer.
    """
    loss_sum, num_correct, num_tokens, num_bytes = sums
    loss = loss_sum / num_tokens
    metrics = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": num_correct / num_tokens,
        "num_tokens": num_tokens,
    }
    return {**metrics, "bits_per_byte": loss_sum / math.log(2) / num_bytes} if num_bytes else metrics
