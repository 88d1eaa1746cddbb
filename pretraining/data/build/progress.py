"""progress.json: the progress of one slice, and its finished files."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretraining.data.build.working_files import read_record, write_record
from pretraining.data.encode.splits import SPLITS
from pretraining.data.input.documents import REMOVED, SkippedLine
from pretraining.data.input.reading import Position
from pretraining.data.store.shards import Shard
from pretraining.system.checked_json import from_json

PROGRESS_NAME = "progress.json"
MAX_LISTED = 10_000  # per file and reason: 2 MB of skipped.jsonl


@dataclass
class SplitProgress:
    """Counts and shards of one split in a slice."""

    num_documents: int = 0
    num_tokens: int = 0
    num_blocks: int = 0
    num_padding_tokens: int = 0
    shards: list[Shard] = field(default_factory=list)


@dataclass
class FileSkips:
    """Numbers of a file's skipped lines that are listed in skipped.jsonl, and that are only counted, by reason.

    Without a limit a decompression bomb would fill the disk with records. Removed documents have no limit: they are
    larger in the input than in the list.
    """

    file: str = ""
    num_listed: dict[str, int] = field(default_factory=dict)
    unlisted: dict[str, int] = field(default_factory=dict)

    def lists(self, line: SkippedLine) -> bool:
        """Whether this line is listed; otherwise it is counted."""
        if line.reason in REMOVED:
            return True
        listed = self.num_listed.get(line.reason, 0)
        if listed >= MAX_LISTED:
            self.unlisted[line.reason] = self.unlisted.get(line.reason, 0) + line.num_lines
            return False
        self.num_listed[line.reason] = listed + 1
        return True


def skip_record(file: str, line: SkippedLine) -> dict[str, Any]:
    """The record of a line in skipped.jsonl."""
    record: dict[str, Any] = {"file": file, "line": line.line, "reason": line.reason, "first_bytes": line.first_bytes}
    if line.copy_of is not None:
        record["copy_of"] = line.copy_of
    if line.num_lines > 1:
        record["num_lines"] = line.num_lines
    return record


@dataclass
class SliceProgress:
    """Progress of a slice; `position` is the first line that is in no finished shard.

    `only_reference`: no fast backend encoded any of it. `num_file_bytes` of the input were read. `first_unreadable` is
    the first unreadable line with its file; `skips_of_file` is of the current file.
    """

    only_reference: bool = True
    num_sections: int = 0
    is_done: bool = False
    position: Position | None = None
    num_file_bytes: int = 0
    num_documents: int = 0
    skipped_lines: dict[str, int] = field(default_factory=dict)
    first_unreadable: dict[str, Any] | None = None
    skips_of_file: FileSkips = field(default_factory=FileSkips)
    splits: dict[str, SplitProgress] = field(default_factory=lambda: {split: SplitProgress() for split in SPLITS})
    documents: list[Shard] = field(default_factory=list)
    skipped_files: list[str] = field(default_factory=list)
    carried_file: str | None = None
    other_hashes: dict[str, str] = field(default_factory=dict)  # of skipped_files and carried_file

    @property
    def num_tokens(self) -> int:
        """Tokens of all splits."""
        return sum(split.num_tokens for split in self.splits.values())

    def file_names(self) -> set[str]:
        """Every finished file of the slice."""
        carried = [] if self.carried_file is None else [self.carried_file]
        return self.hashes().keys() | set(self.skipped_files) | set(carried)

    def hashes(self) -> dict[str, str]:
        """The SHA-256 of every finished file; earlier versions recorded only those of shards."""
        shards = [shard for split in self.splits.values() for shard in split.shards] + self.documents
        return {shard.path: shard.sha256 for shard in shards} | self.other_hashes

    def write(self, folder: Path) -> None:
        """Replace the previous progress."""
        write_record(folder / PROGRESS_NAME, dataclasses.asdict(self))


def read_progress(folder: Path) -> SliceProgress | None:
    """The progress of the slice in `folder`; None if no section is finished."""
    try:
        return read_record(
            folder / PROGRESS_NAME,
            lambda content: from_json(SliceProgress, content, PROGRESS_NAME),
            remedy=remedy_for(folder),
        )
    except FileNotFoundError:
        return None


def remedy_for(folder: Path) -> str:
    """The remedy for a damaged working file of a slice."""
    return f"delete {folder} and run the same command again"
