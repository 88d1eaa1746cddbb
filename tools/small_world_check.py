"""Compare a model with the limit of what can be learned of the small world, and its stories with the world's grammar.

    python3 generate.py --model runs/news --prompt "" --num_samples 200 --output stories.jsonl
    python3 -m tools.small_world_check runs/news --dataset blocks --samples stories.jsonl
    python3 -m tools.small_world_check --dataset blocks          # no model: the limit, for the reports of runs

The blocks are made of the stories of tools.small_world, with --add_bos. Each held-out story is predicted by itself, by
the code of tools.evaluate, and stands beside its exact probability under the grammar. Far above the limit, something is
wrong with the training. Below it by more than four standard errors, the model has seen the answers, and the command
fails. A sentence is well formed if a template tells it. A story is consistent if the grammar tells all of it: its
sums, days and names agree. Without a model the limit of the held-out stories is written into the block store, and the
report of each run on these blocks shows it.
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
from pretraining.system.files import write_atomically
from small_world import WORLD
from small_world.checker import Checker, SampleFigures, copied_share, figures_of_samples, sentences_of
from small_world.limit import limit_of, limits_by_source
from small_world.reading import story_readings
from tools.text_statistics import read_samples, say

if TYPE_CHECKING:
    from pretraining.data.mixture import Mixture
    from pretraining.evaluation.known_limit import Gap, Predicted
    from pretraining.generation.source import ModelSource

ROW = "{:<10} {:>8} {:>10} {:>8} {:>8} {:>16}"
HEADINGS = ["source", "stories", "bits/byte", "limit", "above", "limit expected"]
NUM_SHOWN, WIDTH = 3, 78
NUM_FRESH = 1000
HELD_OUT: tuple[Split, ...] = ("validation", "test")

logger = logging.getLogger("pretraining.small_world_check")


@dataclass(frozen=True)
class CheckArguments:
    """Flags of tools.small_world_check."""

    model: str | None = flag(None, "run folder, model or checkpoint; stands first; without, the limit is written")
    dataset: str | None = flag(None, "block store of small-world stories that it was trained on, made with --add_bos")
    split: Split = flag("validation", "split of --dataset whose stories are predicted")
    samples: Path | None = flag(None, 'stories of the model: a file of generate.py --prompt "" --output')
    output: Path | None = flag(None, "write the figures to this file too, as JSON")

    def __post_init__(self) -> None:
        """Check what needs no file, all at once."""
        check_all(
            {
                "--dataset: is missing; give the block store of the training": self.dataset is not None,
                "--model: is missing; pass a run folder, a model or a checkpoint for --samples and --output": (
                    self.model is not None or (self.samples is None and self.output is None)
                ),
                f"--output {self.output}: exists already; choose another file": (
                    self.output is None or not self.output.exists()
                ),
            }
        )


def main(argv: Sequence[str]) -> None:
    """Write the limit of the blocks, or set a model beside it."""
    groups = [dataclass_group("Check", CheckArguments)]
    (arguments,) = parse_recipe(__doc__ or "", groups, argv, first=["model"])
    stories = [] if arguments.samples is None else [one.prompt + one.text for one in read_samples(arguments.samples)]

    from pretraining.data.mixture import load_mixture
    from pretraining.generation.source import find_model

    mixture = load_mixture([arguments.dataset], revision=None)
    if arguments.model is None:
        write_limit(mixture)
    else:
        judge(arguments, mixture, find_model(arguments.model), stories)


def judge(arguments: CheckArguments, mixture: Mixture, source: ModelSource, stories: Sequence[str]) -> None:
    """Predict the held-out stories, judge the model's own, show and check both."""
    from pretraining.evaluation.known_limit import document_texts, predict_documents
    from pretraining.generation.load_model import load_model

    model, tokenizer = load_model(source)
    predicted = predict_documents(model, tokenizer, mixture, arguments.split, truth=truth)
    gaps = gaps_by_source(predicted)
    figures, usual = None, 0.0
    if stories:
        known = {sentence for text in document_texts(mixture, "train", tokenizer) for sentence in sentences_of(text)}
        figures, usual = figures_of_samples(Checker(WORLD), stories, known), copied_share(fresh_stories(), known)
    show_gaps(gaps, arguments.split)
    if figures is not None:
        show_samples(figures, stories, usual)
    if arguments.output is not None:
        write(arguments.output, gaps, figures)
    check_not_below(gaps, arguments)


def write_limit(mixture: Mixture) -> None:
    """Write the limit of each held-out split into the block store, in bits per byte."""
    from pretraining.data.store.manifest import KNOWN_LIMIT_NAME
    from pretraining.evaluation.known_limit import limit_of_split
    from pretraining.training.model.tokenizer import tokenizer_for_model

    store, origin = mixture.first, mixture.origin
    tokenizer = tokenizer_for_model(store.folder, origin, max_length=origin.block_length)
    splits: list[Split] = [split for split in HELD_OUT if store.manifest.splits[split].num_blocks]
    limits = {split: limit_of_split(mixture, split, tokenizer, truth=truth) for split in splits}
    path = store.folder / KNOWN_LIMIT_NAME
    write_atomically(path, (json.dumps(limits, indent=2) + "\n").encode())
    shown = ", ".join(f"{limit:.4f} on {split}" for split, limit in limits.items())
    logger.info("limit in bits per byte, below which no model gets: %s", shown or "no split is held out")
    logger.info("for the reports of runs: %s", path)


def truth(text: str) -> tuple[str, float]:
    """The source of a story, and its information in bits.

    Raises:
        UserError: when the world does not tell this story.
    """
    found = story_readings(WORLD, text)
    if not found:
        raise UserError(f"--dataset: {text[:60]!r} is not a story of this small world; make it with tools.small_world")
    return found[0].source, -math.log2(sum(reading.probability for reading in found))


def gaps_by_source(predicted: Sequence[Predicted]) -> dict[str, Gap]:
    """Of each source that has a story, and in total."""
    from pretraining.evaluation.known_limit import gap_of

    by_source = {source: [one for one in predicted if one.source == source] for source in WORLD.sources}
    return {source: gap_of(found) for source, found in {**by_source, "total": predicted}.items() if found}


def show_gaps(gaps: dict[str, Gap], split: str) -> None:
    """Print the bits per byte of the model beside those of the grammar."""
    expected = {**limits_by_source(WORLD), "total": limit_of(WORLD)}
    say(f"The {split} stories, each by itself, beside the limit of what can be learned:", "")
    say(ROW.format(*HEADINGS))
    for name, gap in gaps.items():
        counts = f"{gap.num_documents:,}", f"{gap.bits_per_byte:.4f}", f"{gap.limit:.4f}", f"{gap.above:.1%}"
        say(ROW.format(name, *counts, f"{expected[name].bits_per_byte:.4f}"))
    total = gaps["total"]
    distance = f"{total.above:.1%} above it, standard error {total.standard_error:.1%}"
    say("", f"bits per byte {total.bits_per_byte:.4f}, limit {total.limit:.4f} ({distance})")


def fresh_stories() -> list[str]:
    """Stories that the world itself tells: how many of their sentences stand in the training data by chance."""
    generator = random.Random(NUM_FRESH)
    return [WORLD.draw(generator)[1] for _ in range(NUM_FRESH)]


def show_samples(figures: SampleFigures, stories: Sequence[str], usual: float) -> None:
    """Print what share of the sampled text is right and new, and the first stories.

    `usual` is the share of the world's own new sentences that stand in the training data.
    """
    say(
        "",
        f"{figures.num_stories:,} stories that the model wrote, {figures.num_sentences:,} sentences and headlines:",
        f"  {figures.well_formed:>6.1%} of the sentences are well formed",
        f"  {figures.consistent:>6.1%} of the stories are consistent: sums, days and names agree",
        f"  {figures.copied:>6.1%} of the sentences stand word for word in the training data",
        f"  {usual:>6.1%} of those in new stories of the world itself do, by chance",
    )
    for story in stories[:NUM_SHOWN]:
        say("", *(line for paragraph in story.split("\n") for line in textwrap.wrap(paragraph, WIDTH) or [""]))


def write(path: Path, gaps: dict[str, Gap], figures: SampleFigures | None) -> None:
    """Write all figures as JSON."""
    content = {
        "limits": {name: dataclasses.asdict(gap) for name, gap in gaps.items()},
        "samples": None if figures is None else dataclasses.asdict(figures),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_not_below(gaps: dict[str, Gap], arguments: CheckArguments) -> None:
    """Fail for a model that predicts better than is possible.

    Raises:
        UserError: with the sources of which it does.
    """
    below = ", ".join(f"{name} by {-gap.above:.1%}" for name, gap in gaps.items() if gap.is_below)
    if below:
        raise UserError(
            f"--model {arguments.model}: is below the limit of what can be learned ({below}), so it has seen the "
            f"answers; check that the {arguments.split} split was not trained on, and how labels and loss are made"
        )


if __name__ == "__main__":
    run_program(main)
