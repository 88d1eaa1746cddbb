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
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # of a data set; never a path such as ../..
SMALLEST_VOCABULARY = 3 + 256  # special tokens and every byte
LARGEST_VOCABULARY = 1 << 22  # `tokenizers` reserves memory for all of it, and four times the largest in use
LARGEST_DOCUMENT_BYTES = (1 << 31) - 1  # the largest text that a column of Arrow takes
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
        """Check what needs no file, all at once."""
        checks = {
            f"--vocab_size {self.vocab_size}: is out of range; three special tokens and 256 bytes need "
            f"{SMALLEST_VOCABULARY}, and {LARGEST_VOCABULARY:,} is the most": (
                SMALLEST_VOCABULARY <= self.vocab_size <= LARGEST_VOCABULARY
            ),
            **document_size_check(self.max_document_bytes),
        }
        problems = [message for message, fine in checks.items() if not fine]
        if problems:
            raise UserError(*problems)


def document_size_check(max_document_bytes: int) -> dict[str, bool]:
    """What is wrong with --max_document_bytes, and whether it is fine."""
    message = f"--max_document_bytes {max_document_bytes}: is out of range; pass 1 to {LARGEST_DOCUMENT_BYTES}"
    return {message: 1 <= max_document_bytes <= LARGEST_DOCUMENT_BYTES}


def is_seed(number: int) -> bool:
    """Whether every random generator takes this number; numpy takes 32 bits."""
    return 0 <= number < 2**32
