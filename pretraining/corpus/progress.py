"""progress.json: how far one slice is, and which of its files are finished."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretraining.corpus.reading import Position
from pretraining.corpus.shards import Shard
from pretraining.corpus.splits import SPLITS
from pretraining.system.files import write_atomically

PROGRESS_NAME = "progress.json"


@dataclass
class SplitProgress:
    """What a slice has of one split."""

    num_documents: int = 0
    num_tokens: int = 0
    num_blocks: int = 0
    num_padding_tokens: int = 0
    shards: list[Shard] = field(default_factory=list)


@dataclass
class SliceProgress:
    """How far a slice is; `position` is where the first line stands that no finished shard has.

    `only_reference` says that no fast backend had a part in it. `num_file_bytes` of the input are read.
    `first_unreadable` is the first line that could not be read, with its file.
    """

    only_reference: bool = True
    num_sections: int = 0
    is_done: bool = False
    position: Position | None = None
    num_file_bytes: int = 0
    num_documents: int = 0
    skipped_lines: dict[str, int] = field(default_factory=dict)
    first_unreadable: dict[str, Any] | None = None
    splits: dict[str, SplitProgress] = field(default_factory=lambda: {split: SplitProgress() for split in SPLITS})
    documents: list[Shard] = field(default_factory=list)
    skipped_files: list[str] = field(default_factory=list)
    carried_file: str | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all splits."""
        return sum(split.num_tokens for split in self.splits.values())

    def file_names(self) -> set[str]:
        """Every file of the slice that is finished."""
        shards = [shard for split in self.splits.values() for shard in split.shards] + self.documents
        carried = [] if self.carried_file is None else [self.carried_file]
        return {shard.path for shard in shards} | set(self.skipped_files) | set(carried)

    def write(self, folder: Path) -> None:
        """Let this take the place of the progress before it."""
        write_atomically(folder / PROGRESS_NAME, json.dumps(dataclasses.asdict(self), indent=1).encode())


def read_progress(folder: Path) -> SliceProgress | None:
    """The progress of the slice in `folder`, None when no section of it is finished."""
    try:
        content = json.loads((folder / PROGRESS_NAME).read_bytes())
    except FileNotFoundError:
        return None
    position = content["position"]
    return SliceProgress(
        **{
            **content,
            "position": None if position is None else Position(**position),
            "splits": {
                name: SplitProgress(**{**split, "shards": [Shard(**shard) for shard in split["shards"]]})
                for name, split in content["splits"].items()
            },
            "documents": [Shard(**shard) for shard in content["documents"]],
        }
    )
