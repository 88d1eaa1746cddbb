"""The files of a finished block store with their sizes and hashes, as git and the Hub count them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import RepoFile


@dataclass(frozen=True)
class StoredFile:
    """One file of a block store; for a shard, size and hash are those of the manifest."""

    store: Path
    path: str
    num_bytes: int
    sha256: str

    def equals(self, remote: RepoFile | None) -> bool:
        """Whether the Hub's file of this path has the same bytes."""
        if remote is None or remote.size != self.num_bytes:
            return False
        if remote.lfs is not None:
            return remote.lfs.sha256 == self.sha256
        return remote.blob_id == _git_blob_id((self.store / self.path).read_bytes())


def _git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
