"""Model inputs, with or without attention across documents.

Only positions separate documents: they restart at 0, and transformers builds its mask from that. It does so only where
no attention mask is passed and nothing is cached (transformers 5.23, masking_utils.py); either would silently let
attention cross documents. Flash attention accepts such positions for a single row, so rows are concatenated for it,
with the bounds of the documents.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from torch.utils.data import default_collate

from pretraining.training.data.dataset import IGNORED_LABEL

Batch = dict[str, torch.Tensor]


def model_inputs(batch: Batch, *, in_one_row: bool) -> dict[str, torch.Tensor | int]:
    """Return the arguments of the model's forward for a micro batch."""
    if in_one_row and "position_ids" in batch:
        return as_packed_row(batch)
    return {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}


def as_packed_row(batch: Batch) -> dict[str, torch.Tensor | int]:
    """Concatenate all blocks to one row of [1, blocks * block_length], with the bounds of the documents in it."""
    num_blocks, block_length = batch["input_ids"].shape
    positions = batch["position_ids"].flatten()
    end = torch.tensor([num_blocks * block_length], device=positions.device)
    bounds = torch.cat([torch.nonzero(positions == 0).flatten(), end]).to(torch.int32)
    return {
        "input_ids": batch["input_ids"].view(1, -1),
        "position_ids": positions[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": block_length,
        "max_length_k": block_length,
    }


def collate_targets(items: Sequence[Batch]) -> Batch:
    """Collate items to a batch whose labels, sources and bytes at each position are those of the next token.

    Shifted here rather than in the loss, so that a batch can be cut along its length.
    """
    batch: Batch = default_collate(list(items))
    last = {"labels": IGNORED_LABEL, "sources": 0, "num_bytes": 0}
    return {
        name: pad(values[:, 1:], (0, 1), value=last[name]) if name in last else values for name, values in batch.items()
    }
