"""The files of a finished block store as the Hub counts them."""

from pathlib import Path

from pretraining.data.store.integrity import file_in_store, shard_file
from pretraining.data.store.manifest import MANIFEST_NAME, STORE_CONTENTS, read_manifest
from pretraining.data.store.shards import Shard
from pretraining.hub.remote_files import StoredFile
from pretraining.system.files import sha256_of


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
