"""The flags of train_tokenizer.py, and what all programs' flags share.

Each dataclass reports what contradicts itself when it is built; ranges.py has the range of each number. A value's
home: here, then the recipe, then the command line.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pretraining.cli.flags import flag

SAMPLE_CORPUS = Path("data/sample/news.jsonl")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # of a data set; never a path such as ../..
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
