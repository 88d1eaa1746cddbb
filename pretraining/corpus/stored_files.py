"""The files of a finished block store with their sizes and hashes, as git and the Hub count them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import RepoFile

from pretraining.corpus.integrity import file_in_store, shard_file
from pretraining.corpus.manifest import MANIFEST_NAME, STORE_CONTENTS, read_manifest
from pretraining.corpus.shards import Shard
from pretraining.system.files import sha256_of


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


def stored_files(store: Path, *, flag: str) -> list[StoredFile]:
    """Every file of a block store, manifest.json last.

    Raises:
        UserError: when a shard is missing or has another size than the manifest says, or a link leads out of the store.
    """
    shards = {shard.path: shard for shard in read_manifest(store, flag=flag).shards}
    present = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    ours = {path for path in present if path.split("/")[0] in STORE_CONTENTS}
    paths = sorted(ours | set(shards), key=lambda path: (path == MANIFEST_NAME, path))
    return [
        _shard_file(store, shards[path], flag) if path in shards else _other_file(store, path, flag) for path in paths
    ]


def _shard_file(store: Path, shard: Shard, flag: str) -> StoredFile:
    shard_file(store, shard, flag=flag)
    return StoredFile(store, shard.path, shard.num_bytes, shard.sha256)


def _other_file(store: Path, path: str, flag: str) -> StoredFile:
    file = file_in_store(store, path, flag=flag)
    return StoredFile(store, path, file.stat().st_size, sha256_of(file))


def _git_blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
