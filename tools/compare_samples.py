"""Let several models continue the same prompts, so that one sees what was learned between them.

    python3 -m tools.compare_samples runs/llama2_7b                     # every checkpoint that the run has kept
    python3 -m tools.compare_samples runs/llama2_7b --held_out held_out.jsonl --output learning.html
    python3 -m tools.compare_samples runs/a/model runs/b/model --prompts "The council" "Scientists have" --seed none

Each prompt is drawn with the same seed for every model, or, without a seed, continued by the most likely token. The
figures: loss, perplexity and bits per byte on held-out documents as tools.evaluate has them, rep-n and distinct-n as
tools.text_statistics has them, over the texts that are shown.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.arguments.run import ObservabilityArguments
from pretraining.cli.flags import check_all, flag
from pretraining.cli.program import renaming_flag, run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.system.escapes import escape_on_terminal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from pretraining.data.input.find import InputFile
    from pretraining.generation.compare import ModelSamples
    from pretraining.generation.source import ModelSource

logger = logging.getLogger("pretraining.compare_samples")


@dataclass(frozen=True)
class SamplesArguments:
    """Flags of tools.compare_samples."""

    models: list[str] = flag([], "a run folder, for all it has kept, or several models; stand first, without --models")
    prompts: list[str] = flag(ObservabilityArguments().sample_prompts, "one or more prompts", is_text=True)
    held_out: list[str] | None = flag(
        None, "files of documents, as preprocess.py takes them, to evaluate each model on"
    )
    max_new_tokens: int = flag(60, "tokens after which a continuation ends without EOS")
    seed: int | None = flag(
        42, "the same draws for each model, as generate.py makes them; none takes the likeliest token"
    )
    output: Path | None = flag(None, "write a page of all texts in full to this file")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        check_all(
            {
                "--models: give a run folder, or several models": bool(self.models),
                "--prompts: is empty; give at least one word": all(self.prompts),
            }
        )


def main(argv: Sequence[str]) -> None:
    """Sample from one model after the other, and show them side by side."""
    words = ["--models", *argv] if argv and not argv[0].startswith("-") else argv
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Comparison", SamplesArguments)], words)

    from pretraining.evaluation.report import open_references
    from pretraining.generation.compare import comparison_lines, comparison_page, models_to_compare
    from pretraining.generation.source import find_model
    from pretraining.system.files import check_new_file

    if arguments.output is not None:
        check_new_file(arguments.output, flag="--output")
    files = open_references(arguments.held_out, None).held_out
    found = {name: find_model(location) for name, location in models_to_compare(arguments.models).items()}
    models = [samples_of(name, source, arguments, files) for name, source in found.items()]
    for line in comparison_lines(arguments.prompts, models):
        sys.stdout.write(escape_on_terminal(line, sys.stdout) + "\n")
    if arguments.output is not None:
        page = comparison_page(", ".join(arguments.models), arguments.prompts, models, notes_of(arguments))
        arguments.output.write_text(page, encoding="utf-8")
        logger.info("page: %s", arguments.output)


def samples_of(name: str, source: ModelSource, arguments: SamplesArguments, files: Sequence[InputFile]) -> ModelSamples:
    """What one model writes, and its figures."""
    from pretraining.evaluation.text_statistics import distinct, repetition
    from pretraining.generation.compare import ModelSamples
    from pretraining.generation.generate import continue_prompts
    from pretraining.generation.load_model import load_model

    model, tokenizer = load_model(source)
    sampling = GenerateArguments(
        max_new_tokens=arguments.max_new_tokens, greedy=arguments.seed is None, seed=arguments.seed or 0
    )
    continuations = list(continue_prompts(model, tokenizer, arguments.prompts, arguments=sampling))
    texts, tokens = [found.text for found in continuations], [found.tokens for found in continuations]
    figures = held_out_figures(model, tokenizer, files) if files else {}
    figures |= {f"rep-{order}": f"{value:.1%}" for order, value in repetition(tokens).items()}
    figures |= {f"distinct-{order}": f"{value:.1%}" for order, value in distinct(tokens).items()}
    return ModelSamples(name, texts, figures)


def held_out_figures(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, files: Sequence[InputFile]
) -> dict[str, str]:
    """Those of tools.evaluate, as they are shown."""
    from pretraining.evaluation.held_out import evaluate_files

    with renaming_flag("--held_out"):
        total = evaluate_files(model, tokenizer, files).total
    bits = total.get("bits_per_byte")
    found = {"loss": f"{total['loss']:.4f}", "perplexity": f"{total['perplexity']:,.1f}"}
    return {**found, "accuracy": f"{total['accuracy']:.1%}"} | ({} if bits is None else {"bits/byte": f"{bits:.4f}"})


def notes_of(arguments: SamplesArguments) -> list[str]:
    """How the page was made."""
    drawn = "the likeliest token each time" if arguments.seed is None else f"seed {arguments.seed}"
    notes = [f"{arguments.max_new_tokens} tokens of each prompt at most, {drawn}; settings of generate.py otherwise."]
    return [*notes, f"Held out: {', '.join(arguments.held_out)}."] if arguments.held_out else notes


if __name__ == "__main__":
    run_program(main)
