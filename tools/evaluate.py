"""Measure how well a model predicts text that it was not trained on.

    python3 -m tools.evaluate runs/llama2_7b --data_files held_out.jsonl            # each document by itself
    python3 -m tools.evaluate runs/llama2_7b --data_files news=a.jsonl wiki=b.parquet --output figures.json
    python3 -m tools.evaluate runs/llama2_7b/checkpoint-500 --dataset blocks --split test       # as pretrain.py does

The model is whatever generate.py takes, the files are whatever preprocess.py takes. A document is BOS (if the model's
tokenizer puts it before a prompt), its text, and EOS. One longer than --window_tokens goes through in windows, each
half a window after the one before, and each of its tokens is predicted once. A first token with nothing before it is
not predicted, and its bytes are not counted.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.cli.flags import check_all, flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.data.encode.splits import Split
from pretraining.system.escapes import escape_on_terminal

if TYPE_CHECKING:
    from pretraining.evaluation.held_out import Figures, HeldOutFigures
    from pretraining.generation.source import ModelSource

logger = logging.getLogger("pretraining.evaluate")

COLUMNS = "{:<15} {:>9} {:>13} {:>8} {:>10} {:>9} {:>9}"  # 79 columns
HEADINGS = ["source", "documents", "tokens", "loss", "perplexity", "accuracy", "bits/byte"]


@dataclass(frozen=True)
class EvaluationArguments:
    """Flags of tools.evaluate."""

    model: str | None = flag(None, "run folder, exported model, checkpoint or Hub id; stands first, without --model")
    data_files: list[str] | None = flag(
        None, "files of documents, as preprocess.py takes them; NAME=FILES names a source"
    )
    text_field: str = flag("text", "field that holds a document's text; a.b is field b of object a")
    source_field: str = flag("source", "field that names a document's source; without it, the file's name")
    split_text_files: bool = flag(False, "blank lines divide a .txt file into documents; otherwise it is one")
    max_document_bytes: int = flag(6 << 20, "larger lines (rows, text files) are skipped")
    window_tokens: int | None = flag(
        None, "tokens that the model sees at once; without it, as many as it has positions"
    )
    dataset: str | None = flag(None, "block store, folder or Hub id, instead of --data_files")
    split: Split = flag("test", "split of --dataset")
    document_masking: bool = flag(False, "attention within documents of --dataset only, for models trained so")
    ignore_first_token: bool = flag(False, "do not predict the first token of documents of --dataset")
    batch_tokens: int = flag(8192, "tokens that go through the model at once; changes speed and memory alone")
    output: Path | None = flag(None, "write the figures to this file too, as JSON")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        check_all(
            {
                "--model: give a run folder, a model, a checkpoint or a Hub id": self.model is not None,
                "--data_files, --dataset: give one of the two": (self.data_files is None) != (self.dataset is None),
                f"--window_tokens {self.window_tokens}: does not apply to --dataset; remove it": (
                    self.window_tokens is None or self.dataset is None
                ),
            }
        )


def main(argv: Sequence[str]) -> None:
    """Evaluate, and show the figures."""
    groups = [dataclass_group("Evaluation", EvaluationArguments)]
    (arguments,) = parse_recipe(__doc__ or "", groups, argv, first=["model"])

    from pretraining.generation.source import find_model
    from pretraining.system.files import check_new_file

    if arguments.output is not None:
        check_new_file(arguments.output, flag="--output")
    source = find_model(arguments.model)
    measure = figures_of_split if arguments.data_files is None else figures_of_files
    figures = measure(source, arguments)
    show(figures)
    if arguments.output is not None:
        content = {"model": source.location, "data": described(arguments), **dataclasses.asdict(figures)}
        arguments.output.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def figures_of_files(source: ModelSource, arguments: EvaluationArguments) -> HeldOutFigures:
    """Those of each document by itself."""
    from pretraining.data.input.documents import JsonFields
    from pretraining.data.input.find import find_inputs
    from pretraining.data.input.formats import ReadingOptions

    fields = JsonFields(arguments.text_field, arguments.source_field)
    files = find_inputs(arguments.data_files or [])  # before torch is imported, so that a mistake costs no time

    from pretraining.evaluation.held_out import evaluate_files
    from pretraining.generation.load_model import load_model

    return evaluate_files(
        *load_model(source),
        files,
        options=ReadingOptions(fields, arguments.max_document_bytes, arguments.split_text_files),
        window_tokens=arguments.window_tokens,
        batch_tokens=arguments.batch_tokens,
    )


def figures_of_split(source: ModelSource, arguments: EvaluationArguments) -> HeldOutFigures:
    """Those of a split of a block store, as pretrain.py tells them."""
    from pretraining.data.mixture import load_mixture

    mixture = load_mixture([arguments.dataset or ""], revision=None)  # before torch is imported

    from pretraining.evaluation.blocks import evaluate_split
    from pretraining.generation.load_model import load_model
    from pretraining.training.data.dataset import BlockFields

    fields = BlockFields(arguments.document_masking, arguments.ignore_first_token)
    return evaluate_split(
        *load_model(source), mixture, arguments.split, fields=fields, batch_tokens=arguments.batch_tokens
    )


def described(arguments: EvaluationArguments) -> list[str]:
    """What was predicted, as it was given."""
    return arguments.data_files or [f"{arguments.dataset}:{arguments.split}"]


def show(figures: HeldOutFigures) -> None:
    """Print a line for each source, and one for all of them."""
    rows = (
        [("total", figures.total)]
        if len(figures.sources) == 1
        else [*figures.sources.items(), ("total", figures.total)]
    )
    for line in [COLUMNS.format(*HEADINGS), *(row(name, values) for name, values in rows)]:
        sys.stdout.write(escape_on_terminal(line, sys.stdout) + "\n")


def row(name: str, values: Figures) -> str:
    """A line of the table; what was not counted is left empty."""
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


if __name__ == "__main__":
    run_program(main)
