"""Which blocks a step with a fault was made of, and which documents, files and lines stand in the worst of them."""

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

NUM_WORST = 3  # blocks that are named with their documents
MOST_DOCUMENTS = 8  # of a block


def gather_block_losses(local: torch.Tensor, *, group_size: int) -> list[float]:
    """The mean losses of all blocks of a step in the order of the stream.

    From each process's sums, [micro steps, blocks, 2], of which `group_size` processes one after another have parts of
    the same blocks.
    """
    parts = [torch.empty_like(local) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, local.contiguous())
    groups = torch.stack(parts).unflatten(0, (-1, group_size)).sum(dim=1)
    sums = groups.transpose(0, 1).flatten(0, 2)  # micro step, group, block: as BlockLoader deals them out
    return (sums[:, 0] / sums[:, 1].clamp(min=1)).tolist()


def worst_blocks(block_ids: np.ndarray, losses: Sequence[float]) -> list[tuple[int, float]]:
    """The blocks of a step to look at, with their losses: those whose loss is no number, or else the highest.

    >>> guilty_blocks(np.array([7, 8, 9]), [2.0, math.nan, 3.0])
    [(8, nan)]
    """
    pairs = [(int(block), loss) for block, loss in zip(block_ids, losses, strict=True)]
    broken = [pair for pair in pairs if not math.isfinite(pair[1])]
    return broken[:NUM_WORST] or sorted(pairs, key=lambda pair: -pair[1])[:NUM_WORST]


def describe_blocks(
    guilty: Sequence[tuple[int, float]], blocks: MixedBlocks, mixture: Mixture
) -> Iterator[dict[str, Any]]:
    """Each block as a record: its store, its number there, its loss, its documents."""
    for block_id, loss in guilty:
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
        places = [tracer.document(piece.document_id) for piece in tracer.pieces("train", block)[:MOST_DOCUMENTS]]
    except (UserError, OSError, pa.ArrowException):  # gone or damaged: no reason to end a run, the number must do
        return []
    return [{"source": place.source, "file": place.file, "line": place.line} for place in places]
