"""What the model is given, so that attention crosses documents or not.

Positions that begin anew are all that separates documents: transformers makes its mask from them. It does so only
where no attention mask is given and nothing is cached (transformers 5.23, masking_utils.py), both of which would let
attention across without a word. Flash attention takes such positions for one row alone, so rows are put one after
another for it, with the borders told.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from torch.utils.data import default_collate

from pretraining.training.data.dataset import IGNORED_LABEL

Batch = dict[str, torch.Tensor]


def model_inputs(batch: Batch, *, in_one_row: bool) -> dict[str, torch.Tensor | int]:
    """The arguments of the model's forward for a micro batch."""
    if in_one_row and "position_ids" in batch:
        return _one_row(batch)
    return {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}


def _one_row(batch: Batch) -> dict[str, torch.Tensor | int]:
    """All blocks as one row of [1, blocks * block_length], and the borders of the documents in it."""
    num_blocks, block_length = batch["input_ids"].shape
    positions = batch["position_ids"].flatten()
    end = torch.tensor([num_blocks * block_length], device=positions.device)
    borders = torch.cat([torch.nonzero(positions == 0).flatten(), end]).to(torch.int32)
    return {
        "input_ids": batch["input_ids"].view(1, -1),
        "position_ids": positions[None],
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": block_length,
        "max_length_k": block_length,
    }


def collate_targets(items: Sequence[Batch]) -> Batch:
    """Items as a batch whose labels, sources and bytes at each place are those of the token after it.

    Shifted here and not in the loss, so that a batch can be cut along its length.
    """
    batch: Batch = default_collate(list(items))
    last = {"labels": IGNORED_LABEL, "sources": 0, "num_bytes": 0}
    return {
        name: pad(values[:, 1:], (0, 1), value=last[name]) if name in last else values for name, values in batch.items()
    }
