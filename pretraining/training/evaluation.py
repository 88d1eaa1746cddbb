"""Loss over a whole split, each block counted exactly once for any number of processes, in constant memory."""

import math
from collections.abc import Iterable

import torch
from torch.utils.data import Dataset

from pretraining.training.block_dataset import IGNORED_LABEL, BlockDataset


class EvaluationBlocks(Dataset):
    """Blocks filled up to whole micro batches on every process; the filling has no labels, so it counts nothing."""

    def __init__(self, blocks: BlockDataset, *, multiple: int) -> None:
        self._blocks = blocks
        self._length = -(-len(blocks) // multiple) * multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index < len(self._blocks):
            return self._blocks[index]
        ids = self._blocks[0]["input_ids"]
        return {"input_ids": ids, "labels": torch.full_like(ids, IGNORED_LABEL)}


@torch.no_grad()
def evaluate_blocks(
    model: torch.nn.Module, batches: Iterable[dict[str, torch.Tensor]], *, device: torch.device
) -> dict[str, float]:
    """Mean loss per predicted token over all processes, its perplexity, and the number of tokens predicted."""
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches:
        # Asked to divide by 1 instead of by the number of tokens, the model gives the sum of the token losses.
        sums[0] += model(**batch, num_items_in_batch=1).loss.double()
        sums[1] += (batch["labels"][:, 1:] != IGNORED_LABEL).sum()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    loss_sum, num_tokens = sums.tolist()
    loss = loss_sum / num_tokens
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "num_tokens": num_tokens}
