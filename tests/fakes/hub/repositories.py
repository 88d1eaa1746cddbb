"""What a Hub holds: users, repositories with commits, and the bytes of files."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

LARGEST_REGULAR_BYTES = 10 << 20
LFS_SUFFIXES = (".parquet", ".safetensors", ".bin", ".pt", ".arrow")


class RefusedError(Exception):
    """An answer that is an error: status, the Hub's own code for it, and words."""

    def __init__(self, status: int, message: str, *, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


@dataclass(frozen=True)
class User:
    """Who a token speaks for, and whether it may write."""

    name: str
    can_write: bool = True


@dataclass(frozen=True)
class Entry:
    """One file of a commit: git's hash of what git stores, and for large files the hash of their bytes."""

    git_oid: str
    num_bytes: int
    sha256: str | None = None

    @property
    def etag(self) -> str:
        return self.sha256 or self.git_oid

    def node(self, path: str) -> dict:
        node = {"type": "file", "oid": self.git_oid, "size": self.num_bytes, "path": path}
        if self.sha256:
            node["lfs"] = {"oid": self.sha256, "size": self.num_bytes, "pointerSize": len(self.pointer)}
        return node

    @property
    def pointer(self) -> bytes:
        return lfs_pointer(self.sha256 or "", self.num_bytes)


Tree = dict[str, Entry]


@dataclass
class Repository:
    """Commits of one branch, the newest last."""

    kind: str
    name: str
    private: bool
    trees: dict[str, Tree] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)  # commits of branches beside main

    def __post_init__(self) -> None:
        self.commit({}, "initial commit")

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    @property
    def head(self) -> str:
        return list(self.trees)[-1]

    def commit(self, tree: Tree, title: str) -> str:
        content = [self.kind, self.name, len(self.trees), title, sorted(map(str, tree.items()))]
        commit = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.trees[commit] = dict(tree)
        return commit

    def resolve(self, revision: str) -> str:
        if revision == "main":
            return self.head
        revision = self.branches.get(revision, revision)
        if revision not in self.trees:
            raise RefusedError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return revision


class Storage:
    """Every repository and every file's bytes, by git's hash or sha256."""

    def __init__(self, users: dict[str, User]) -> None:
        self.users = users
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}

    def create(self, kind: str, name: str, *, private: bool) -> Repository:
        repository = self.repositories[kind, name] = Repository(kind, name, private)
        return repository

    def readable(self, kind: str, name: str, user: User | None) -> Repository:
        """A repository that `user` may see; a private one of somebody else is not even admitted to exist."""
        repository = self.repositories.get((kind, name))
        if repository is None or (repository.private and (user is None or user.name != repository.owner)):
            raise RefusedError(404 if user else 401, "Repository not found", code="RepoNotFound")
        return repository

    def writable(self, kind: str, name: str, user: User | None) -> Repository:
        repository = self.readable(kind, name, user)
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        if user.name != repository.owner or not user.can_write:
            raise RefusedError(403, "Forbidden: you don't have write access to this repository")
        return repository

    def store_regular(self, content: bytes) -> Entry:
        if len(content) > LARGEST_REGULAR_BYTES:
            raise RefusedError(400, "Your push was rejected because it contains files larger than 10 MiB")
        entry = Entry(git_oid(content), len(content))
        self.blobs[entry.git_oid] = content
        return entry

    def store_large(self, content: bytes) -> Entry:
        sha256 = hashlib.sha256(content).hexdigest()
        self.blobs[sha256] = content
        return large_entry(sha256, len(content))

    def serve_folder(self, kind: str, name: str, folder: Path, *, private: bool) -> Repository:
        """Make a repository of a folder."""
        tree = {}
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name_in_repo, content = path.relative_to(folder).as_posix(), path.read_bytes()
            store = self.store_large if is_large(name_in_repo, content) else self.store_regular
            tree[name_in_repo] = store(content)
        repository = self.create(kind, name, private=private)
        repository.commit(tree, "all files")
        return repository


def is_large(path: str, sample: bytes, num_bytes: int | None = None) -> bool:
    """Whether the Hub wants a file in LFS or Xet: large, of a binary format, or not text."""
    size = len(sample) if num_bytes is None else num_bytes
    return size > LARGEST_REGULAR_BYTES or path.endswith(LFS_SUFFIXES) or b"\0" in sample[:512]


def large_entry(sha256: str, num_bytes: int) -> Entry:
    return Entry(git_oid(lfs_pointer(sha256, num_bytes)), num_bytes, sha256)


def lfs_pointer(sha256: str, num_bytes: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {num_bytes}\n".encode()


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
