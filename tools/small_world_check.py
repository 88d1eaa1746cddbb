"""Compare a model with the entropy of the small world, and its stories with the world's grammar.

    python3 generate.py --model runs/news --prompt "" --num_samples 200 --output stories.jsonl
    python3 -m tools.small_world_check runs/news --dataset blocks --samples stories.jsonl
    python3 -m tools.small_world_check --dataset blocks          # no model: write the limit for the reports of runs

The blocks are stories of tools.small_world, preprocessed with --add_bos. Each held-out story is predicted separately,
as in tools.evaluate, and compared with its exact probability under the grammar. A model far above that limit has an
error in training. A model below it by more than four standard errors has an information leak, and the command fails. A
sentence is well formed if it matches a template. A story is consistent if the grammar can generate all of it: its sums,
days and names agree. Without a model, the limit is written into the block store, and reports of runs show it.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.cli.flags import check_all, flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.data.encode.splits import Split
from pretraining.errors import UserError
from pretraining.evaluation.completion_file import read_completion_file
from pretraining.system.files import write_atomically
from small_world import WORLD
from small_world.checker import Checker, SampleMetrics, copied_share, sample_metrics, sentences_of
from small_world.limit import limit_of, limits_by_source
from small_world.reading import story_readings
from tools.evaluate import show

if TYPE_CHECKING:
    from pretraining.data.mixture import Mixture
    from pretraining.evaluation.known_limit import DocumentBits, Gap
    from pretraining.runs.model_source import ModelSource

ROW = "{:<10} {:>8} {:>10} {:>8} {:>8} {:>16}"
HEADINGS = ["source", "stories", "bits/byte", "limit", "above", "limit expected"]
NUM_SHOWN, WIDTH = 3, 78
NUM_FRESH = 1000
HELD_OUT_SPLITS: tuple[Split, ...] = ("validation", "test")

logger = logging.getLogger("pretraining.small_world_check")


@dataclass(frozen=True)
class CheckArguments:
    """Flags of tools.small_world_check."""

    model: str | None = flag(
        None, "run folder, model or checkpoint; may come first, without --model; default: write the limit"
    )
    dataset: str | None = flag(
        None, "block store of small-world stories that the model was trained on, made with --add_bos"
    )
    split: Split = flag("validation", "split of --dataset whose stories are predicted")
    samples: Path | None = flag(None, 'stories of the model, written by generate.py --prompt "" --output')
    output: Path | None = flag(None, "also write the metrics to this file, as JSON")

    def __post_init__(self) -> None:
        """Check all combinations of flags at once."""
        checks = {
            "--dataset: is missing; pass the block store of the training": self.dataset is not None,
            "--model: is missing; pass a run folder, a model or a checkpoint for --samples and --output": (
                self.model is not None or (self.samples is None and self.output is None)
            ),
            f"--output {self.output}: exists already; choose another file": not (self.output and self.output.exists()),
        }
        check_all(checks)


def main(argv: Sequence[str]) -> None:
    """Write the limit of the blocks, or compare a model with it."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Check", CheckArguments)], argv, first=["model"])
    samples = [] if arguments.samples is None else read_completion_file(arguments.samples, flag="--samples")

    from pretraining.data.mixture import load_mixture
    from pretraining.runs.model_source import find_model

    mixture = load_mixture([arguments.dataset], revision=None)
    if arguments.model is None:
        write_limit(mixture)
    else:
        check_model(arguments, mixture, find_model(arguments.model), [one.prompt + one.text for one in samples])


def check_model(arguments: CheckArguments, mixture: Mixture, source: ModelSource, stories: Sequence[str]) -> None:
    """Evaluate the held-out stories, check the model's own stories, and show both."""
    from pretraining.evaluation.known_limit import document_texts, predict_documents
    from pretraining.generation.load_model import load_model

    model, tokenizer = load_model(source)
    predicted = predict_documents(model, tokenizer, mixture, arguments.split, true_bits=true_bits)
    gaps = gaps_by_source(predicted)
    metrics, expected_copied = None, 0.0
    if stories:
        known = {sentence for text in document_texts(mixture, "train", tokenizer) for sentence in sentences_of(text)}
        metrics = sample_metrics(Checker(WORLD), stories, known)
        expected_copied = copied_share(fresh_stories(), known)
    show_gaps(gaps, arguments.split)
    if metrics is not None:
        show_samples(metrics, stories, expected_copied)
    if arguments.output is not None:
        write(arguments.output, gaps, metrics)
    check_not_below(gaps, arguments)


def write_limit(mixture: Mixture) -> None:
    """Write the limit of each held-out split into the block store, in bits per byte."""
    from pretraining.data.store.manifest import KNOWN_LIMIT_NAME
    from pretraining.evaluation.known_limit import limit_of_split
    from pretraining.training.model.tokenizer import tokenizer_for_model

    store, origin = mixture.first, mixture.origin
    tokenizer = tokenizer_for_model(store.folder, origin, max_length=origin.block_length)
    splits: list[Split] = [split for split in HELD_OUT_SPLITS if store.manifest.splits[split].num_blocks]
    limits = {split: limit_of_split(mixture, split, tokenizer, true_bits=true_bits) for split in splits}
    path = store.folder / KNOWN_LIMIT_NAME
    write_atomically(path, (json.dumps(limits, indent=2) + "\n").encode())
    shown = ", ".join(f"{limit:.4f} on {split}" for split, limit in limits.items())
    logger.info("limit in bits per byte, which no model can get below: %s", shown or "no held-out split")
    logger.info("for the reports of runs: %s", path)


def true_bits(text: str) -> tuple[str, float]:
    """The source of a story, and its information in bits.

    Raises:
        UserError: if the grammar cannot generate this story.
    """
    found = story_readings(WORLD, text)
    if not found:
        raise UserError(
            f"--dataset: {text[:60]!r} is not a story of this small world; generate it with tools.small_world"
        )
    return found[0].source, -math.log2(sum(reading.probability for reading in found))


def gaps_by_source(predicted: Sequence[DocumentBits]) -> dict[str, Gap]:
    """The gap of each source that has a story, and the total."""
    from pretraining.evaluation.known_limit import gap_of

    by_source = {source: [one for one in predicted if one.source == source] for source in WORLD.sources}
    return {source: gap_of(found) for source, found in {**by_source, "total": predicted}.items() if found}


def show_gaps(gaps: dict[str, Gap], split: str) -> None:
    """Print the bits per byte of the model next to those of the grammar."""
    expected = {**limits_by_source(WORLD), "total": limit_of(WORLD)}
    show(f"The {split} stories, each predicted separately, and the limit (entropy):", "")
    show(ROW.format(*HEADINGS))
    for name, gap in gaps.items():
        counts = f"{gap.num_documents:,}", f"{gap.bits_per_byte:.4f}", f"{gap.limit:.4f}", f"{gap.above:.1%}"
        show(ROW.format(name, *counts, f"{expected[name].bits_per_byte:.4f}"))
    total = gaps["total"]
    distance = f"{total.above:.1%} above it, standard error {total.standard_error:.1%}"
    show("", f"bits per byte {total.bits_per_byte:.4f}, limit {total.limit:.4f} ({distance})")


def fresh_stories() -> list[str]:
    """New stories of the world, some of whose sentences are in the training data by chance."""
    generator = random.Random(NUM_FRESH)
    return [WORLD.draw(generator)[1] for _ in range(NUM_FRESH)]


def show_samples(metrics: SampleMetrics, stories: Sequence[str], expected_copied: float) -> None:
    """Print the shares of well-formed, consistent and copied text, and the first stories.

    `expected_copied` is the share of the sentences of new stories that are in the training data.
    """
    show(
        "",
        f"{metrics.num_stories:,} stories of the model, {metrics.num_sentences:,} sentences and headlines:",
        f"  {metrics.well_formed:>6.1%} of the sentences are well formed",
        f"  {metrics.consistent:>6.1%} of the stories are consistent: sums, days and names agree",
        f"  {metrics.copied:>6.1%} of the sentences are copied from the training data",
        f"  {expected_copied:>6.1%} of the sentences of new stories are in the training data by chance",
    )
    for story in stories[:NUM_SHOWN]:
        show("", *(line for paragraph in story.split("\n") for line in textwrap.wrap(paragraph, WIDTH) or [""]))


def write(path: Path, gaps: dict[str, Gap], metrics: SampleMetrics | None) -> None:
    """Write all metrics as JSON."""
    content = {
        "limits": {name: dataclasses.asdict(gap) for name, gap in gaps.items()},
        "samples": None if metrics is None else dataclasses.asdict(metrics),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_not_below(gaps: dict[str, Gap], arguments: CheckArguments) -> None:
    """Fail for a model that predicts better than is possible.

    Raises:
        UserError: if the model is below the limit on a source or in total.
    """
    below = ", ".join(f"{name} by {-gap.above:.1%}" for name, gap in gaps.items() if gap.is_below)
    if below:
        raise UserError(
            f"--model {arguments.model}: is below the limit ({below}), which indicates an information leak; check "
            f"that the {arguments.split} split was not trained on, and how labels and loss are computed"
        )


if __name__ == "__main__":
    run_program(main)
