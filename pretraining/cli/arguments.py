"""The flags of train_tokenizer.py and generate.py, and what all programs' flags share.

Each dataclass reports its own mistakes when it is built. A value's home: here, then the recipe, then the command line.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.errors import UserError
from pretraining.cli.flags import flag

SAMPLE_CORPUS = Path("data/sample/news.jsonl")
SEED_RANGE = "0 to 4,294,967,295"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # of a data set
SAMPLE_TOKENIZER = "data/sample/tokenizer"


@dataclass(frozen=True)
class TokenizerArguments:
    """Flags of train_tokenizer.py."""

    data_files: list[str] = flag(
        [str(SAMPLE_CORPUS)], "JSONL, Parquet or .txt files (.gz, .zst, .xz too), folders, globs"
    )
    text_field: str = flag("text", "field that holds a document's text; a.b is field b of object a")
    max_document_bytes: int = flag(6 << 20, "lines larger than this are skipped")
    vocab_size: int = flag(32000, "tokens in the vocabulary, special tokens included")
    output_dir: Path = flag(Path("tokenizer"), "tokenizer folder to make")

    def __post_init__(self) -> None:
        """Check what needs no file."""
        smallest = 3 + 256  # special tokens and every byte
        if self.vocab_size < smallest:
            raise UserError(f"--vocab_size {self.vocab_size}: three special tokens and 256 bytes need {smallest}")


def is_seed(number: int) -> bool:
    """Whether every random generator takes this number; numpy takes 32 bits."""
    return 0 <= number < 2**32


@dataclass(frozen=True)
class GenerateArguments:
    """Flags of generate.py."""

    model: str | None = flag(
        None, "run folder, exported model, checkpoint or Hub id; without it, the newest run in runs/"
    )
    prompt: list[str] = flag(["I wanna go"], "one or more prompts")
    prompt_file: Path | None = flag(None, "file with one prompt a line, instead of --prompt")
    output: Path | None = flag(None, "write JSON lines with prompt and continuation to this file, instead of text")
    num_samples: int = flag(1, "continuations of each prompt")
    max_new_tokens: int = flag(200, "tokens after which a continuation ends without EOS")
    temperature: float = flag(0.8, "below 1 safer, above 1 wilder")
    top_p: float = flag(0.95, "sample from the most likely tokens that together have this probability")
    top_k: int = flag(50, "sample from this many most likely tokens; 0 for all")
    repetition_penalty: float = flag(1.1, "above 1 makes tokens that stand there already less likely")
    greedy: bool = flag(False, "take the most likely token (after --repetition_penalty)")
    seed: int = flag(42, "same seed, same text")

    def __post_init__(self) -> None:
        """Check the ranges, all at once."""
        checks = {
            f"--num_samples {self.num_samples}: give 1 or more": self.num_samples >= 1,
            f"--max_new_tokens {self.max_new_tokens}: give 1 or more": self.max_new_tokens >= 1,
            f"--temperature {self.temperature}: give more than 0, or --greedy": self.temperature > 0,
            f"--top_p {self.top_p}: give more than 0, at most 1": 0 < self.top_p <= 1,
            f"--top_k {self.top_k}: give 0 or more": self.top_k >= 0,
            f"--repetition_penalty {self.repetition_penalty}: give more than 0": self.repetition_penalty > 0,
            f"--seed {self.seed}: is out of range; give {SEED_RANGE}": is_seed(self.seed),
            "--num_samples: greedy decoding has one continuation; give 1": not (self.greedy and self.num_samples > 1),
        }
        problems = [message for message, fine in checks.items() if not fine]
        if problems:
            raise UserError(*problems)
