"""Report on completions, as text and JSON: statistics, likelihood, text copied from training data.

Importing this module does not import torch, so that a wrong flag is reported at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.cli.program import renaming_flag
from pretraining.data.input.files import InputFile
from pretraining.data.input.find import find_inputs
from pretraining.data.inspect.provenance import BlockProvenance
from pretraining.errors import UserError
from pretraining.evaluation.memorization import CopiedFigures, copied_figures
from pretraining.evaluation.text_statistics import CompletionLike, TextStatistics, text_statistics

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class References:
    """What completions are compared with: documents of --reference_files, and the blocks of the training."""

    files: Sequence[InputFile]
    blocks: BlockProvenance | None


def open_references(reference_files: Sequence[str] | None, blocks: Path | None) -> References:
    """Find the files and open the block store.

    Raises:
        UserError: if a file cannot be read, or --blocks has no block of the train split.
    """
    with renaming_flag("--reference_files"):
        files = find_inputs(reference_files or [])
    provenance = None if blocks is None else BlockProvenance(blocks, flag="--blocks")
    if provenance is not None and not provenance.manifest.splits["train"].num_blocks:
        raise UserError(f"--blocks {blocks}: has no block to train on; pass the blocks that the model was trained on")
    return References(files, provenance)


@dataclass(frozen=True)
class CompletionReport:
    """All that was measured; `perplexity` is that of the model, by the names of the JSON output."""

    statistics: TextStatistics
    perplexity: dict[str, float | None] | None
    copied: CopiedFigures | None

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield from self.statistics.lines()
        if self.perplexity is not None:
            names = {"continuations": "completions", "held_out": "reference files"}
            shown = [f"{value:,.2f} on {names[key]}" for key, value in self.perplexity.items() if value is not None]
            yield f"perplexity     {', '.join(shown) or 'of no token'}"
        if self.copied is not None:
            yield from self.copied.lines()

    def as_json(self) -> dict[str, Any]:
        """The report as JSON fields."""
        parts = dataclasses.asdict(self.statistics), {} if self.copied is None else dataclasses.asdict(self.copied)
        return {**parts[0], **({} if self.perplexity is None else {"perplexity": self.perplexity}), **parts[1]}


class CompletionEvaluator:
    """Evaluate completions with a model, or without; the references are read first, so that errors cost no text.

    Raises:
        UserError: if a reference file has no document, or --blocks were made with another tokenizer.
    """

    def __init__(
        self, references: References, model: tuple[LlamaForCausalLM, PreTrainedTokenizerFast] | None = None
    ) -> None:
        self._blocks, self._model = references.blocks, model
        self._reference_perplexity: float | None = None
        if model is not None and self._blocks is not None:
            _check_tokenizer(self._blocks, model[1])
        if model is not None and references.files:
            from pretraining.evaluation.held_out import evaluate_files

            with renaming_flag("--reference_files"):
                self._reference_perplexity = evaluate_files(*model, references.files).total["perplexity"]

    def report(self, completions: Sequence[CompletionLike]) -> CompletionReport:
        """Evaluate one or more completions."""
        perplexity, copied = None, None
        if self._model is not None:
            from pretraining.evaluation.windows import evaluate_completions

            found = evaluate_completions(*self._model, completions)
            own = None if found is None else found["perplexity"]
            perplexity = {"continuations": own, "held_out": self._reference_perplexity}
        if self._blocks is not None:
            copied = copied_figures(completions, self._blocks)
        return CompletionReport(text_statistics(completions), perplexity, copied)


def _check_tokenizer(blocks: BlockProvenance, tokenizer: PreTrainedTokenizerFast) -> None:
    """Reject blocks of another tokenizer: completions would be found nowhere in them, or anywhere."""
    from pretraining.generation.load_model import encodes_to

    made_by = blocks.manifest.origin.tokenizer
    if not encodes_to(tokenizer, made_by.canary_text, made_by.canary_ids):
        raise UserError(
            f"--blocks {blocks.folder}: were made with another tokenizer ({made_by.name}); pass the blocks that the "
            "model was trained on"
        )
