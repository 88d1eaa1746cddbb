"""manifest.json: what a block store is made from, what is in it, and counts that add up.

It is written last, so a folder that has one is complete.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.cli.errors import UserError
from pretraining.corpus.cleaning import CleaningRules
from pretraining.corpus.packing import Packing
from pretraining.corpus.shards import Shard
from pretraining.corpus.splits import SPLITS
from pretraining.corpus.tokenization import TokenRules, id_dtype
from pretraining.system.files import write_atomically

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
STORE_CONTENTS = {"data", "documents", "tokenizer", "skipped.jsonl", MANIFEST_NAME, "README.md"}


@dataclass(frozen=True)
class SourceFile:
    """One input file, as it was named, with the source it was given, size and hash."""

    path: str
    source: str | None
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
    split_text_files: bool
    max_document_bytes: int
    cleaning: CleaningRules
    tokenizer: TokenizerIdentity
    token_rules: TokenRules
    block_length: int
    packing: Packing
    split_weights: list[int]
    seed: int
    num_slices: int
    tokens_per_shard: int
    chat_template: str | None = None  # of conversations, whose blocks say which tokens are answers

    @property
    def dtype(self) -> str:
        """Type of the ids in the blocks."""
        return id_dtype(self.tokenizer.vocab_size)


@dataclass(frozen=True)
class SplitContents:
    """Counts of one split: `num_tokens` + `num_padding_tokens` = `num_blocks` x block length + `num_tail_tokens`."""

    num_documents: int
    num_tokens: int
    num_blocks: int
    num_padding_tokens: int
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

    @property
    def shards(self) -> list[Shard]:
        """Every shard of the store."""
        return [shard for split in self.splits.values() for shard in split.shards] + self.documents

    def check_sums(self) -> None:
        """Raise AssertionError unless every line and every token is accounted for."""
        assert self.num_lines == self.num_documents + sum(self.skipped_lines.values()), "lines do not add up"
        assert set(self.splits) == set(SPLITS), "not the three splits"
        assert self.num_documents == sum(shard.num_rows for shard in self.documents), "rows of documents do not add up"
        splits = self.splits.values()
        assert self.num_documents == sum(split.num_documents for split in splits), "documents do not add up"
        for name, split in self.splits.items():
            in_blocks = split.num_blocks * self.origin.block_length - split.num_padding_tokens
            assert split.num_tokens == in_blocks + split.num_tail_tokens, f"tokens of {name} do not add up"
            assert split.num_blocks == sum(shard.num_rows for shard in split.shards), f"blocks of {name} do not"

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`."""
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / MANIFEST_NAME, text.encode("utf-8"))


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
    return Manifest(
        **{
            **content,
            "origin": origin_of(content["origin"]),
            "splits": {name: _split_of(split) for name, split in content["splits"].items()},
            "documents": [Shard(**shard) for shard in content["documents"]],
        }
    )


def origin_of(content: dict[str, Any]) -> Origin:
    """The origin that was written as JSON."""
    cleaning = content["cleaning"]
    return Origin(
        **{
            **content,
            "sources": [SourceFile(**source) for source in content["sources"]],
            "cleaning": CleaningRules(**{**cleaning, "languages": tuple(cleaning["languages"])}),
            "tokenizer": TokenizerIdentity(**content["tokenizer"]),
            "token_rules": TokenRules(**content["token_rules"]),
        }
    )


def differences(theirs: Origin, ours: Origin) -> list[str]:
    """What two origins differ in, as `seed 42, not 9`: theirs, then ours; files by their paths."""
    names = [field.name for field in dataclasses.fields(Origin) if field.name != "sources"]
    found = [(name, getattr(theirs, name), getattr(ours, name)) for name in names]
    shown = [f"{name} {_shown(a, b)}, not {_shown(b, a)}" for name, a, b in found if a != b]
    files = set(theirs.sources) ^ set(ours.sources)
    if files or theirs.sources != ours.sources:
        paths = sorted({file.path for file in files}) or ["another order"]
        shown.insert(0, "data_files " + ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else ""))
    return shown


def _shown(value: Any, other: Any) -> str:
    """`value`, of a group of fields only those in which it differs from `other`."""
    if not dataclasses.is_dataclass(value):
        return str(value)
    fields = [field.name for field in dataclasses.fields(value)]
    return ", ".join(
        f"{name}={getattr(value, name)}" for name in fields if getattr(value, name) != getattr(other, name)
    )


def _split_of(content: dict[str, Any]) -> SplitContents:
    return SplitContents(**{**content, "shards": [Shard(**shard) for shard in content["shards"]]})
