"""Generate a corpus of known entropy: news stories of a small world, drawn from a grammar.

    python3 -m tools.small_world --num_stories 30000 --seed 7 --output news.jsonl

The package small_world has the grammar. Its entropy in bits per byte of text is the limit: a model above it has more to
learn, and a model below it has an information leak. tools.small_world_check compares a model with it.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.flags import check_all, flag
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError
from pretraining.system.files import write_atomically
from small_world import WORLD
from small_world.limit import limit_of

logger = logging.getLogger("pretraining.small_world")


@dataclass(frozen=True)
class WorldArguments:
    """Flags of tools.small_world."""

    num_stories: int = flag(30_000, "stories to draw")
    seed: int = flag(7, "same seed, same stories")
    output: Path | None = flag(None, "JSON lines to write, with the fields text and source")

    def __post_init__(self) -> None:
        """Check all flags at once."""
        checks = {
            "--output: is missing; pass a file, e.g. news.jsonl": self.output is not None,
            f"--output {self.output}: exists already; choose another file": not (self.output and self.output.exists()),
        }
        check_all(checks)


def main(argv: Sequence[str]) -> None:
    """Generate the stories, write them, and log their entropy."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Small world", WorldArguments)], argv)
    content = b"".join(lines(arguments.num_stories, seed=arguments.seed))
    try:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(arguments.output, content)
    except OSError as error:
        message = f"--output {arguments.output}: cannot be written ({error.strerror}); choose another file"
        raise UserError(message) from None
    logger.info("%s stories, %.1f MB: %s", f"{arguments.num_stories:,}", len(content) / 1e6, arguments.output)
    limit = limit_of(WORLD)
    logger.info(
        "a story has %.1f bytes and %.2f bits on average: no model can get below %.4f bits per byte",
        limit.num_bytes,
        limit.bits,
        limit.bits_per_byte,
    )


def lines(num_stories: int, *, seed: int) -> Iterator[bytes]:
    """The stories as JSON lines."""
    generator = random.Random(seed)
    for _ in range(num_stories):
        source, text = WORLD.draw(generator)
        yield json.dumps({"text": text, "source": source}, ensure_ascii=False).encode() + b"\n"


if __name__ == "__main__":
    run_program(main)
