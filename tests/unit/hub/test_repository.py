"""Files are compared with those of the Hub as git and LFS count them."""

import hashlib
from pathlib import Path

from huggingface_hub import RepoFile

from pretraining.hub.repository import hash_files
from tests.fakes.hub.repositories import git_oid

CONTENT = b"tokens"


def remote(*, content: bytes, is_lfs: bool) -> RepoFile:
    lfs = {"size": len(content), "oid": hashlib.sha256(content).hexdigest(), "pointerSize": 1} if is_lfs else None
    return RepoFile(path="a/b", size=len(content), oid=git_oid(b"a pointer" if is_lfs else content), lfs=lfs)


def test_a_file_equals_one_of_the_hub_with_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").write_bytes(CONTENT)
    (file,) = hash_files(tmp_path, [tmp_path / "a/b"])
    assert (file.path, file.num_bytes) == ("a/b", len(CONTENT))
    for is_lfs in (False, True):
        assert file.equals(remote(content=CONTENT, is_lfs=is_lfs))
        assert not file.equals(remote(content=b"Tokens", is_lfs=is_lfs))
        assert not file.equals(remote(content=CONTENT + b"!", is_lfs=is_lfs))
    assert not file.equals(None)
