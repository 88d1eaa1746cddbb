"""manifest.json: the specification of a block store, its contents, and counts that add up.

It is written last, so a folder that has one is complete.
"""

import dataclasses
import json
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretraining.data.encode.splits import SPLITS
from pretraining.data.input.documents import ReadingOptions
from pretraining.data.input.filters import CleaningRules
from pretraining.data.store.packing import Packing
from pretraining.data.store.shards import DOCUMENTS_PREFIX, Shard, shard_path
from pretraining.data.tokenize.tokenizer import TokenizerIdentity, TokenRules, id_dtype
from pretraining.errors import UserError
from pretraining.system.checked_json import from_json, parse_json
from pretraining.system.files import write_atomically

FORMAT_VERSION = 2
MANIFEST_NAME = "manifest.json"
SHA256 = re.compile("[0-9a-f]{64}")
KNOWN_LIMIT_NAME = "known_limit.json"  # bits per byte by split, of data with known probabilities
STORE_CONTENTS = {"data", "documents", "tokenizer", "skipped.jsonl", MANIFEST_NAME, "README.md", KNOWN_LIMIT_NAME}


@dataclass(frozen=True)
class SourceFile:
    """One input file: path and source as they were given, size and hash."""

    path: str
    source: str | None
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class StoreSpec:
    """Everything that determines the bytes of a block store."""

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
    chat_template: str | None = None  # of conversations, whose blocks mark the answers

    @property
    def reading_options(self) -> ReadingOptions:
        """How the sources are read."""
        return ReadingOptions(
            self.max_document_bytes,
            self.text_field,
            self.source_field,
            self.split_text_files,
            vocab_size=self.tokenizer.vocab_size,
            eos_token_id=self.token_rules.eos_token_id,
        )

    @property
    def dtype(self) -> str:
        """NumPy type of the ids in the blocks."""
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
    """The content of manifest.json; `conversations` counts those of each format, in a store of conversations."""

    origin: StoreSpec
    dtype: str
    num_lines: int
    num_documents: int
    skipped_lines: dict[str, int]
    splits: dict[str, SplitContents]
    documents: list[Shard]
    conversations: dict[str, int] | None = None

    @property
    def shards(self) -> list[Shard]:
        """Every shard of the store."""
        return [shard for split in self.splits.values() for shard in split.shards] + self.documents

    def check(self) -> None:
        """Check that every line and every token is accounted for, and that nothing is contradictory.

        Raises:
            ValueError: with the first problem.
        """
        checks = self._checks()
        for path, shard in self._named_shards():
            checks[f"{shard.path!r:.80} is not {path}, the name of a shard"] = shard.path == path
            checks[f"{path} has no SHA-256"] = SHA256.fullmatch(shard.sha256) is not None
        wrong = next((message for message, fine in checks.items() if not fine), None)
        if wrong is not None:
            raise ValueError(wrong)

    def _checks(self) -> dict[str, bool]:
        if set(self.splits) != set(SPLITS):
            return {f"its splits are not {', '.join(SPLITS)}": False}
        origin, splits = self.origin, self.splits.values()
        tokenizer, rules = origin.tokenizer, origin.token_rules
        ids = [rules.eos_token_id, rules.bos_token_id or 0, *tokenizer.canary_ids]
        by_format = self.conversations
        checks = {
            "conversations do not add up": by_format is None or sum(by_format.values()) == self.num_documents,
            "lines do not add up": self.num_lines == self.num_documents + sum(self.skipped_lines.values()),
            "rows of documents do not add up": (self.num_documents == sum(shard.num_rows for shard in self.documents)),
            "documents do not add up": self.num_documents == sum(split.num_documents for split in splits),
            f"dtype is not {origin.dtype}": self.dtype == origin.dtype,
            "block_length is not 2 or more": origin.block_length >= 2,
            f"vocab_size {tokenizer.vocab_size} is not more than its largest id {max(ids)}, and 2^32 at most": (
                max(ids) < tokenizer.vocab_size <= 1 << 32
            ),
        }
        for name, split in self.splits.items():
            in_blocks = split.num_blocks * origin.block_length - split.num_padding_tokens
            checks[f"tokens of {name} do not add up"] = split.num_tokens == in_blocks + split.num_tail_tokens
            checks[f"blocks of {name} do not add up"] = split.num_blocks == sum(s.num_rows for s in split.shards)
        return checks

    def _named_shards(self) -> Iterator[tuple[str, Shard]]:
        """Each shard with the only valid path, so that no path leads out of the store or occurs twice."""
        groups = {DOCUMENTS_PREFIX: self.documents} | {f"data/{n}": s.shards for n, s in self.splits.items()}
        for prefix, shards in groups.items():
            for number, shard in enumerate(shards):
                yield shard_path(prefix, number, len(shards)), shard

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`."""
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        if self.conversations is None:
            content.pop("conversations")  # keeps the bytes of block stores of text
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / MANIFEST_NAME, text.encode("utf-8"))


def read_manifest(folder: Path, *, flag: str) -> Manifest:
    """Read the manifest of a block store.

    Raises:
        UserError: naming `flag`, when the folder is not a block store, or one of another format version.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise UserError(
            f"{flag} {folder}: not a block store ({MANIFEST_NAME} is missing); run preprocess.py or pass another folder"
        )
    try:
        content = parse_json(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        version = content.pop("format_version", None)
        if version == FORMAT_VERSION:
            manifest = from_json(Manifest, content, MANIFEST_NAME)
            manifest.check()
            return manifest
    except OSError as error:
        raise UserError(f"{flag} {folder}: {path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); preprocess again, or copy the complete folder again") from None
    raise UserError(
        f"{path}: has format version {reprlib.repr(version)}, this program reads {FORMAT_VERSION}; preprocess again"
    )


def differences(theirs: StoreSpec, ours: StoreSpec) -> list[str]:
    """The differences of two specifications, e.g. `seed 42, not 9`: theirs, then ours; files by their paths."""
    names = [field.name for field in dataclasses.fields(StoreSpec) if field.name != "sources"]
    found = [(name, getattr(theirs, name), getattr(ours, name)) for name in names]
    shown = [f"{name} {_shown(a, b)}, not {_shown(b, a)}" for name, a, b in found if a != b]
    files = set(theirs.sources) ^ set(ours.sources)
    if files or theirs.sources != ours.sources:
        paths = sorted({file.path for file in files}) or ["another order"]
        shown.insert(0, "data_files " + ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else ""))
    return shown


def _shown(value: Any, other: Any) -> str:
    """`value`; of a group of fields only those that differ from `other`."""
    if not dataclasses.is_dataclass(value):
        return str(value)
    fields = [field.name for field in dataclasses.fields(value)]
    return ", ".join(
        f"{name}={getattr(value, name)}" for name in fields if getattr(value, name) != getattr(other, name)
    )
