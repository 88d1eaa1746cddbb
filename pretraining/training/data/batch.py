"""Model inputs, with or without attention across documents.

Only positions separate documents: they restart at 0, and transformers builds its mask from that. It does so only where
no attention mask is passed and nothing is cached (transformers 5.23, masking_utils.py); either would silently let
attention cross documents. Flash kernels take the bounds of the documents instead of a mask, in a single row, so rows
are concatenated for them. The bounds are found on the host when a batch is collated: on a GPU that would stop it.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from torch.utils.data import default_collate

from pretraining.training.data.dataset import IGNORED_LABEL

Batch = dict[str, torch.Tensor]
BOUNDS = "document_bounds"  # in a batch: int32 [documents + 1], into all its rows one after another


def model_inputs(batch: Batch, *, in_one_row: bool, num_parts: int = 1) -> dict[str, torch.Tensor | int]:
    """Return the arguments of the model's forward for a micro batch, or for one of `num_parts` of its length."""
    if in_one_row and "position_ids" in batch:  # [1, blocks * block_length]
        rows = {name: batch[name].view(1, -1) for name in ("input_ids", "position_ids")}
        return {**rows, **attention_bounds(batch, block_length=batch["input_ids"].shape[1])}
    inputs: dict[str, torch.Tensor | int] = {n: batch[n] for n in ("input_ids", "position_ids") if n in batch}
    if num_parts == 1:
        return inputs
    return {**inputs, **attention_bounds(batch, block_length=batch["input_ids"].shape[1] * num_parts)}


def attention_bounds(batch: Batch, *, block_length: int) -> dict[str, torch.Tensor | int]:
    """The arguments of the model's forward by which flash kernels separate documents; none without masking.

    The length of a block stands for that of the longest document, which a GPU would have to be asked for.
    """
    if BOUNDS not in batch:
        return {}
    bounds = {f"cu_seq_lens_{side}": batch[BOUNDS] for side in "qk"}
    return {**bounds, **{f"max_length_{side}": block_length for side in "qk"}}


def collate_targets(items: Sequence[Batch]) -> Batch:
    """Collate items to a batch whose labels, sources and bytes at each position are those of the next token.

    Shifted here rather than in the loss, so that a batch can be cut along its length. Positions, which restart with
    each document, come with the bounds of the documents.
    """
    batch: Batch = default_collate(list(items))
    if "position_ids" in batch:
        positions = batch["position_ids"].flatten()
        batch[BOUNDS] = pad(torch.nonzero(positions == 0).flatten(), (0, 1), value=len(positions)).to(torch.int32)
    last = {"labels": IGNORED_LABEL, "sources": 0, "num_bytes": 0}
    return {
        name: pad(values[:, 1:], (0, 1), value=last[name]) if name in last else values for name, values in batch.items()
    }
