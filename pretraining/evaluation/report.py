"""What texts of a model are compared with; found before torch is imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.program import renaming_flag
from pretraining.data.input.find import InputFile, find_inputs
from pretraining.data.inspect.provenance import BlockProvenance
from pretraining.errors import UserError


@dataclass(frozen=True)
class Comparisons:
    """What texts are compared with: held-out documents, and the blocks of the training."""

    held_out: Sequence[InputFile]
    blocks: BlockProvenance | None


def open_references(held_out: Sequence[str] | None, blocks: Path | None) -> Comparisons:
    """Find both.

    Raises:
        UserError: when a file cannot be read, or --blocks has no blocks to train on.
    """
    with renaming_flag("--held_out"):
        files = find_inputs(held_out or [])
    tracer = None if blocks is None else BlockProvenance(blocks, flag="--blocks")
    if tracer is not None and not tracer.manifest.splits["train"].num_blocks:
        raise UserError(f"--blocks {blocks}: has no block to train on; give the blocks that the model was trained on")
    return Comparisons(files, tracer)
