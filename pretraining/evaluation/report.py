"""Report on completions (statistics, likelihood, text copied from training data) and on models, as text and JSON.

Importing this module does not import torch, so that a wrong flag is reported at once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.cli.program import renaming_flag
from pretraining.data.input.find import InputFile, find_inputs
from pretraining.data.inspect.provenance import BlockProvenance
from pretraining.errors import UserError
from pretraining.evaluation.memorization import CopiedFigures, copied_figures
from pretraining.evaluation.text_statistics import (
    CompletionLike,
    TextStatistics,
    distinct,
    format_orders,
    repetition,
    text_statistics,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from pretraining.evaluation.held_out import HeldOutMetrics, Metrics

COLUMNS = "{:<15} {:>9} {:>13} {:>8} {:>10} {:>9} {:>9}"  # 79 columns
HEADINGS = ["documents", "tokens", "loss", "perplexity", "accuracy", "bits/byte"]
SHOWN_CHARACTERS = 100  # of a completion in a comparison
FIELD_TYPES = {"prompt": str, "text": str, "tokens": list, "finish_reason": str}


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
class SavedCompletion:
    """A line of a file of completions."""

    prompt: str
    text: str
    tokens: list[int]
    finish_reason: str


def read_completion_file(path: Path, *, flag: str) -> list[SavedCompletion]:
    """Read JSON lines with the fields prompt, text, tokens and finish_reason; `flag` names the file in errors.

    Raises:
        UserError: if the file cannot be read, or a line lacks a field.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag} {path}: cannot be read ({error}); check the path") from None
    found = [_completion_of(f"{flag} {path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"{flag} {path}: has no line; write it with generate.py --output")
    return found


def _completion_of(place: str, line: str) -> SavedCompletion:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    is_valid = isinstance(content, dict) and all(
        isinstance(content.get(name), kind) for name, kind in FIELD_TYPES.items()
    )
    if not is_valid or not all(isinstance(token, int) for token in content["tokens"]):
        fields = ", ".join(FIELD_TYPES)
        raise UserError(f"{place}: is not an object with {fields}; write the file with generate.py --output")
    return SavedCompletion(**{name: content[name] for name in FIELD_TYPES})


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


def metrics_lines(metrics: Mapping[str, HeldOutMetrics]) -> Iterator[str]:
    """Of one model a row per source and their total, of several models their totals."""
    if not metrics:
        return
    rows = [(name, one.total) for name, one in metrics.items()]
    if len(rows) == 1:
        (sources,) = [one.sources for one in metrics.values()]
        rows = [*(sources.items() if len(sources) > 1 else ()), ("total", rows[0][1])]
    yield COLUMNS.format("source" if len(metrics) == 1 else "model", *HEADINGS)
    yield from (_format_row(name, values) for name, values in rows)


def _format_row(name: str, values: Metrics) -> str:
    """A row of the table; unknown metrics are omitted."""
    bits, num_documents = values.get("bits_per_byte"), values.get("num_documents")
    return COLUMNS.format(
        name,
        "" if num_documents is None else f"{num_documents:,.0f}",
        f"{values['num_tokens']:,.0f}",
        f"{values['loss']:.4f}",
        f"{values['perplexity']:,.2f}",
        f"{values['accuracy']:.1%}",
        "" if bits is None else f"{bits:.4f}",
    )


def comparison_lines(prompts: Sequence[str], completions: Mapping[str, Sequence[CompletionLike]]) -> Iterator[str]:
    """Repetition and diversity of each model, then for each prompt the beginning of each model's completion."""
    width = max(map(len, completions), default=0)
    for model, some in completions.items():
        tokens = [completion.tokens for completion in some]
        rates = format_orders("rep", repetition(tokens)), format_orders("distinct", distinct(tokens))
        yield f"{model:<{width}} {'  '.join(rates)}"
    for number, prompt in enumerate(prompts):
        yield f"\n{prompt}"
        for model, some in completions.items():
            text = " ".join(some[number].text.split())
            shown = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
            yield f"{model:<{width}} {shown}"
