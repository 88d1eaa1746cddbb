"""The flags of train_tokenizer.py, and what all programs' flags share.

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
