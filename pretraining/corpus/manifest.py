"""manifest.json: what a block store is made from, what is in it, and counts that add up.

It is written last, so a folder that has one is complete.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.cli.errors import UserError
from pretraining.corpus.shards import Shard
from pretraining.corpus.splits import SPLITS
from pretraining.corpus.tokenization import TokenRules

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class SourceFile:
    """One input file, as it was named, with size and hash."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class TokenizerIdentity:
    """Which tokenizer made the ids: the hash of its tokenizer.json, and a canary text with its ids."""

    name: str
    sha256: str
    vocab_size: int
    canary_text: str
    canary_ids: list[int]


@dataclass(frozen=True)
class Origin:
    """All that decides the bytes of a block store: the same origin gives the same store."""

    sources: list[SourceFile]
    text_field: str
    source_field: str
    tokenizer: TokenizerIdentity
    token_rules: TokenRules
    block_length: int
    split_weights: list[int]
    seed: int


@dataclass(frozen=True)
class SplitContents:
    """Counts of one split: `num_tokens` = `num_blocks` x block length + `num_tail_tokens`."""

    num_documents: int
    num_tokens: int
    num_blocks: int
    num_tail_tokens: int
    shards: list[Shard]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    origin: Origin
    dtype: str
    num_lines: int
    num_documents: int
    skipped_lines: dict[str, int]
    splits: dict[str, SplitContents]
    documents: list[Shard]

    def check_sums(self) -> None:
        """Raise AssertionError unless every line and every token is accounted for."""
        assert self.num_lines == self.num_documents + sum(self.skipped_lines.values()), "lines do not add up"
        assert set(self.splits) == set(SPLITS), "not the three splits"
        splits = self.splits.values()
        assert self.num_documents == sum(split.num_documents for split in splits), "documents do not add up"
        for name, split in self.splits.items():
            in_blocks = split.num_blocks * self.origin.block_length
            assert split.num_tokens == in_blocks + split.num_tail_tokens, f"tokens of {name} do not add up"
            assert split.num_blocks == sum(shard.num_rows for shard in split.shards), f"blocks of {name} do not"

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`."""
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def read_manifest(folder: Path, *, flag: str) -> Manifest:
    """The manifest of a block store.

    Raises:
        UserError: naming `flag` when the folder is no block store, or one of another format version.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise UserError(f"{flag} {folder}: is no block store ({MANIFEST_NAME} is missing); make one with preprocess.py")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("format_version")
        if version == FORMAT_VERSION:
            manifest = _manifest_of(content)
            manifest.check_sums()
            return manifest
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"{path}: is damaged ({type(error).__name__}: {error}); preprocess again") from None
    raise UserError(f"{path}: has format version {version}, this program reads {FORMAT_VERSION}; preprocess again")


def _manifest_of(content: dict[str, Any]) -> Manifest:
    origin = content["origin"]
    return Manifest(
        **{
            **content,
            "origin": Origin(
                **{
                    **origin,
                    "sources": [SourceFile(**source) for source in origin["sources"]],
                    "tokenizer": TokenizerIdentity(**origin["tokenizer"]),
                    "token_rules": TokenRules(**origin["token_rules"]),
                }
            ),
            "splits": {name: _split_of(split) for name, split in content["splits"].items()},
            "documents": [Shard(**shard) for shard in content["documents"]],
        }
    )


def _split_of(content: dict[str, Any]) -> SplitContents:
    return SplitContents(**{**content, "shards": [Shard(**shard) for shard in content["shards"]]})
