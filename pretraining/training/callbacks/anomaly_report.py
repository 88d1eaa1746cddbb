"""Find the worst blocks of a step with an anomaly, and their documents, files and lines."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pretraining.data.inspect.provenance import BlockProvenance
from pretraining.data.mixture import Mixture
from pretraining.errors import UserError
from pretraining.training.data.dataset import MixedBlocks

MAX_BLOCKS = 3  # that are reported with their documents
MAX_DOCUMENTS = 8  # per block


def gather_block_losses(local: torch.Tensor, *, group_size: int) -> list[float]:
    """The mean losses of all blocks of a step, in nats and in the order of the stream; called on every process.

    `local` has the sums of this process, [micro steps, blocks, 2]; `group_size` consecutive processes share blocks.
    """
    parts = [torch.empty_like(local) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, local.contiguous())
    groups = torch.stack(parts).unflatten(0, (-1, group_size)).sum(dim=1)
    sums = groups.transpose(0, 1).flatten(0, 2)  # micro step, group, block: the order of BlockLoader
    return (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist()


def worst_blocks(block_ids: np.ndarray, losses: Sequence[float]) -> list[tuple[int, float]]:
    """The blocks with a NaN or Inf loss, or else those with the highest losses, each with its loss.

    >>> worst_blocks(np.array([7, 8, 9]), [2.0, math.nan, 3.0])
    [(8, nan)]
    """
    pairs = [(int(block), loss) for block, loss in zip(block_ids, losses, strict=True)]
    broken = [pair for pair in pairs if not math.isfinite(pair[1])]
    return broken[:MAX_BLOCKS] or sorted(pairs, key=lambda pair: -pair[1])[:MAX_BLOCKS]


def describe_blocks(
    worst: Sequence[tuple[int, float]], blocks: MixedBlocks, mixture: Mixture
) -> Iterator[dict[str, Any]]:
    """Each block as a record: its store, its number in the store, its loss, its documents."""
    for block_id, loss in worst:
        number, block = blocks.locate(block_id)
        store = mixture.parts[number].store
        yield {
            "dataset": store.name,
            "block": block,
            "block_loss": loss if math.isfinite(loss) else str(loss),
            "documents": _documents(store.folder, block),
        }


def _documents(store: Path, block: int) -> list[dict[str, Any]]:
    try:
        tracer = BlockProvenance(store, flag="--dataset")
        locations = [tracer.document(piece.document_id) for piece in tracer.pieces("train", block)[:MAX_DOCUMENTS]]
    except (UserError, OSError, pa.ArrowException):  # a store that is gone or damaged does not end a run
        return []
    return [{"source": place.source, "file": place.file, "line": place.line} for place in locations]
