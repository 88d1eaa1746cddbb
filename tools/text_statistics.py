"""Tell what generated text is like: repetitive, varied, long, ended, likely, copied.

    python3 generate.py --prompt_file prompts.txt --num_samples 8 --output samples.jsonl
    python3 -m tools.text_statistics samples.jsonl
    python3 -m tools.text_statistics samples.jsonl --model runs/llama2_7b --held_out held_out.jsonl
    python3 -m tools.text_statistics samples.jsonl --blocks blocks      # is it copied from the training data?

rep-n is the share of n-grams of tokens that stood in the same continuation before (Welleck et al. 2019, seq-rep-n);
distinct-n counts the different n-grams of all continuations for each of their tokens (Li et al. 2016). The perplexity
of the continuations is the model's own, at temperature 1 and given the prompts. Text as likely as what people wrote
has that of the held-out documents; far less is dull, far more is odd. A copied run is one of 8 tokens or more that
stands in a training document, found by its ids in every block of train: the share of tokens in such runs, and each
continuation's longest one with its document.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.cli.flags import check_all, flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError
from pretraining.evaluation.text_statistics import text_statistics
from pretraining.system.cores import usable_cores
from pretraining.system.escapes import escape_on_terminal

logger = logging.getLogger("pretraining.text_statistics")


@dataclass(frozen=True)
class StatisticsArguments:
    """Flags of tools.text_statistics."""

    samples: Path | None = flag(None, "JSON lines that generate.py --output wrote; stands first, without --samples")
    model: str | None = flag(None, "the model that wrote them, as generate.py takes it: how likely it finds them")
    held_out: list[str] | None = flag(None, "files of documents, as preprocess.py takes them, to compare that with")
    blocks: Path | None = flag(None, "block store that the model was trained on: what of the text stands there")
    num_shown: int = flag(5, "copied runs to show, the longest first")
    num_workers: int = flag(usable_cores(), "threads that look through --blocks")
    output: Path | None = flag(None, "write the figures to this file too, as JSON")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        check_all(
            {
                "--samples: give a file that generate.py --output wrote": self.samples is not None,
                "--held_out: needs --model, which is evaluated on it": self.held_out is None or self.model is not None,
                f"--output {self.output}: exists already; choose another file": (
                    self.output is None or not self.output.exists()
                ),
            }
        )


@dataclass(frozen=True)
class Sample:
    """A line of the file."""

    prompt: str
    text: str
    tokens: list[int]
    finish_reason: str


def main(argv: Sequence[str]) -> None:
    """Tell what was asked for, one thing after the other."""
    groups = [dataclass_group("Statistics", StatisticsArguments)]
    (arguments,) = parse_recipe(__doc__ or "", groups, argv, first=["samples"])
    samples = read_samples(arguments.samples)

    from pretraining.evaluation.memorization import copied_figures
    from pretraining.evaluation.report import open_references
    from pretraining.generation.source import find_model

    comparisons = open_references(arguments.held_out, arguments.blocks)
    source = None if arguments.model is None else find_model(arguments.model)
    figures = text_statistics(samples)
    say(*figures.lines())
    told: dict[str, Any] = dataclasses.asdict(figures)
    if source is not None:
        from pretraining.evaluation.perplexity import continuations_perplexity, held_out_perplexity, perplexity_line
        from pretraining.generation.load_model import load_model

        model, tokenizer = load_model(source)
        ours = continuations_perplexity(model, tokenizer, samples)
        theirs = held_out_perplexity(model, tokenizer, comparisons.held_out)
        told["perplexity"] = {"continuations": ours, "held_out": theirs}
        say(perplexity_line(ours, theirs))
    if comparisons.blocks is not None:
        copied = copied_figures(samples, comparisons.blocks, num_workers=arguments.num_workers)
        told |= dataclasses.asdict(copied)
        say(*copied.lines(arguments.num_shown))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_samples(path: Path) -> list[Sample]:
    """The lines of `path`.

    Raises:
        UserError: when it cannot be read, or a line is none that generate.py writes.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--samples {path}: cannot be read ({error}); check the path") from None
    samples = [_sample_of(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not samples:
        raise UserError(f"--samples {path}: has no line; make it with generate.py --output")
    return samples


def _sample_of(place: str, line: str) -> Sample:
    kinds = {"prompt": str, "text": str, "tokens": list, "finish_reason": str}
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    is_one = isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in kinds.items())
    if not is_one or not all(isinstance(token, int) for token in content["tokens"]):
        raise UserError(f"--samples {place}: is no object with {', '.join(kinds)}; make it with generate.py --output")
    return Sample(**{name: content[name] for name in kinds})


def say(*lines: str) -> None:
    """Print lines at once."""
    for line in lines:
        sys.stdout.write(escape_on_terminal(line, sys.stdout) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_program(main)
