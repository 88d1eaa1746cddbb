"""Tell what generated text is like: repetitive, varied, long, ended, likely, copied.

    python3 generate.py --prompt_file prompts.txt --num_samples 8 --output samples.jsonl
    python3 -m tools.text_statistics samples.jsonl
    python3 -m tools.text_statistics samples.jsonl --model runs/llama2_7b --held_out held_out.jsonl
    python3 -m tools.text_statistics samples.jsonl --blocks blocks      # is it copied from the training data?

rep-n is the share of n-grams of tokens that stood in the same continuation before (Welleck et al. 2019, seq-rep-n);
distinct-n counts the different n-grams of all continuations for each of their tokens (Li et al. 2016). The perplexity
of the continuations is the model's own, at temperature 1 and given the prompts. Text as likely as what people wrote
has that of the held-out documents; far less is dull, far more is odd. A copied run is one of 8 tokens or more that
stands in a training document: each continuation's longest one counts, found by its ids in every block of train.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from pretraining.cli.errors import UserError, run_program
from pretraining.cli.flags import flag
from pretraining.cli.progress import Progress
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.corpus.copied_runs import CopiedRun, find_copied_runs
from pretraining.corpus.provenance import BlockTracer
from pretraining.corpus.token_bytes import TokenBytes, text_of
from pretraining.sampling.statistics import text_statistics

logger = logging.getLogger("pretraining.text_statistics")

SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class StatisticsArguments:
    """Flags of tools.text_statistics."""

    samples: Path | None = flag(None, "JSON lines that generate.py --output wrote; stands first, without --samples")
    model: str | None = flag(None, "the model that wrote them, as generate.py takes it: how likely it finds them")
    held_out: list[str] | None = flag(None, "files of documents, as preprocess.py takes them, to compare that with")
    blocks: Path | None = flag(None, "block store that the model was trained on: what of the text stands there")
    num_shown: int = flag(5, "copied runs to show, the longest first")
    num_workers: int = flag(len(os.sched_getaffinity(0)), "threads that look through --blocks")
    output: Path | None = flag(None, "write the figures to this file too, as JSON")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        checks = {
            "--samples: give a file that generate.py --output wrote": self.samples is not None,
            "--held_out: needs --model, which is evaluated on it": self.held_out is None or self.model is not None,
            f"--num_shown {self.num_shown}: give 0 or more": self.num_shown >= 0,
            f"--num_workers {self.num_workers}: give 1 or more": self.num_workers >= 1,
            f"--output {self.output}: exists already; choose another file": (
                self.output is None or not self.output.exists()
            ),
        }
        problems = [message for message, fine in checks.items() if not fine]
        if problems:
            raise UserError(*problems)


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
    figures = text_statistics(samples)
    say(*figures.lines())
    told: dict[str, Any] = dataclasses.asdict(figures)
    if arguments.model is not None:
        told["perplexity"] = show_perplexity(samples, arguments.model, arguments.held_out)
    if arguments.blocks is not None:
        told["copied_runs"] = show_copied_runs(samples, arguments)
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
    except ValueError:
        content = None
    is_one = isinstance(content, dict) and all(isinstance(content.get(name), kind) for name, kind in kinds.items())
    if not is_one or not all(isinstance(token, int) for token in content["tokens"]):
        raise UserError(f"--samples {place}: is no object with {', '.join(kinds)}; make it with generate.py --output")
    return Sample(**{name: content[name] for name in kinds})


def show_perplexity(samples: Sequence[Sample], model_name: str, held_out: list[str] | None) -> dict[str, float | None]:
    """Tell the model's perplexity on the samples, and on held-out documents beside it."""
    from pretraining.corpus.inputs import find_inputs
    from pretraining.sampling.model_source import find_model, load_model
    from pretraining.training.continuations import evaluate_continuations
    from pretraining.training.held_out import evaluate_files

    files = find_inputs(held_out or [])
    model, tokenizer = load_model(find_model(model_name))
    ours = evaluate_continuations(model, tokenizer, samples)
    found = {"continuations": None if ours is None else ours["perplexity"]}
    if files:
        found["held_out"] = evaluate_files(model, tokenizer, files).total["perplexity"]
    shown = [f"{value:,.2f} on {name.replace('_', '-')}" for name, value in found.items() if value is not None]
    say(f"perplexity     {', '.join(shown) or 'of no token'}")
    return found


def show_copied_runs(samples: Sequence[Sample], arguments: StatisticsArguments) -> list[dict[str, Any]]:
    """Tell how much of the samples stands in the training blocks, and where the longest runs do."""
    assert arguments.blocks is not None
    tracer = BlockTracer(arguments.blocks, flag="--blocks")
    token_bytes = TokenBytes(tracer.folder / "tokenizer")
    check_tokens(samples, token_bytes, tracer)
    shards = tracer.manifest.splits["train"].shards
    with Progress(sum(shard.num_bytes for shard in shards)) as progress:
        runs = find_copied_runs(
            tracer,
            [sample.tokens for sample in samples],
            split="train",
            progress=progress,
            num_workers=arguments.num_workers,
        )
    rows = list(copied_rows(samples, runs, tracer, token_bytes))
    longest = [row["num_tokens"] for row in rows]
    most = f"; longest {max(longest):,} tokens, mean of those {fmean(longest):,.1f}" if rows else ""
    say(f"copied         {len(rows):,} of {len(samples):,} continuations have a run of 8 tokens or more{most}")
    for row in sorted(rows, key=lambda row: -row["num_tokens"])[: arguments.num_shown]:
        shown = " ".join(row["text"].split())
        cut = shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 1] + "…"
        say(f"  {row['num_tokens']:>4} tokens of line {row['sample']}, in {row['file']}:{row['line']}: {cut}")
    return rows


def check_tokens(samples: Sequence[Sample], token_bytes: TokenBytes, tracer: BlockTracer) -> None:
    """Refuse ids of another tokenizer than that of the blocks: they would be found nowhere, or anywhere."""
    vocab_size = tracer.manifest.origin.tokenizer.vocab_size
    for number, sample in enumerate(samples, 1):
        is_known = all(0 <= token < vocab_size for token in sample.tokens)
        text = text_of(token_bytes.join(np.array(sample.tokens, np.int64)).data.tobytes()) if is_known else ""
        if not is_known or not _plain(text).startswith(_plain(sample.text)):
            raise UserError(
                f"--blocks {tracer.folder}: its tokenizer does not give the text of sample {number} from its tokens; "
                "give the blocks that the model was trained on"
            )


def _plain(text: str) -> str:
    """Without what decoders differ in: spaces at the ends, and what stands for half a character."""
    return text.replace("\ufffd", "").strip()


def copied_rows(
    samples: Sequence[Sample], runs: Sequence[CopiedRun | None], tracer: BlockTracer, token_bytes: TokenBytes
) -> Iterator[dict[str, Any]]:
    """Of each sample with a copied run: its number (from 1), the run, and the document where it stands."""
    for number, (sample, run) in enumerate(zip(samples, runs, strict=True), 1):
        if run is not None:
            document = tracer.document(run.document_id)
            tokens = np.array(sample.tokens[run.start : run.start + run.num_tokens])
            text = text_of(token_bytes.join(tokens).data.tobytes())
            place = {"file": document.file, "line": document.line, "source": document.source}
            yield {"sample": number, **dataclasses.asdict(run), **place, "text": text}


def say(*lines: str) -> None:
    """Print lines at once."""
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_program(main)
