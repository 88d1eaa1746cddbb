"""A repository of the Hugging Face Hub, of a data set or a model: upload into it, verify what arrived, download.

`HfApi.upload_folder` (huggingface_hub 2.4) uploads in parallel, splits large uploads into commits, deletes in the first
of them, and sends nothing twice after an interruption. It does not verify what arrived; `wrong_files` does.
"""

import hashlib
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, RepoFile, constants, snapshot_download
from huggingface_hub.repocard import RepoCard
from huggingface_hub.utils import disable_progress_bars

from pretraining.errors import UserError
from pretraining.hub.push_queue import UploadPayload
from pretraining.hub.retry import HUB_ERRORS, error_message, read_problem, with_retries
from pretraining.system.files import sha256_of

SHOWN_FILES = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalFile:
    """A file of a folder that is uploaded, by its path in it, with size and SHA-256."""

    folder: Path
    path: str
    num_bytes: int
    sha256: str

    def equals(self, remote: RepoFile | None) -> bool:
        """Whether the Hub's file of this path has the same bytes."""
        if remote is None or remote.size != self.num_bytes:
            return False
        if remote.lfs is not None:
            return remote.lfs.sha256 == self.sha256
        content = (self.folder / self.path).read_bytes()  # git hashes small files with their size
        return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def hash_files(folder: Path, paths: Iterable[Path]) -> list[LocalFile]:
    """Files below `folder`, each of which is read: 1.5 GB/s per core."""
    return [
        LocalFile(folder, path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path)) for path in paths
    ]


class Repository:
    """A repository and the token that writes into it; None is the token of this machine."""

    def __init__(
        self,
        name: str,
        repo_type: Literal["dataset", "model"],
        *,
        token: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.name = name
        self.url = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{name}"
        self._repo_type = repo_type
        self._revision = revision
        self._api = HfApi(token=token)

    def create(self, *, private: bool) -> None:
        """Create the repository unless it exists; an existing one keeps its visibility."""
        with_retries(
            lambda: self._api.create_repo(self.name, repo_type=self._repo_type, private=private, exist_ok=True)
        )

    def newest_commit(self) -> tuple[str, str]:
        """The newest commit, and `private` or `public`."""
        info = with_retries(lambda: self._api.repo_info(self.name, repo_type=self._repo_type))
        assert info.sha is not None
        return info.sha, "private" if info.private else "public"

    def announce(self, *, asked_private: bool, flag: str) -> None:
        """Log where the upload goes and who can see it; warn if `flag` asked for another visibility."""
        _, visibility = self.newest_commit()
        logger.info("pushing to the %s %s %s", visibility, self._repo_type.replace("dataset", "data set"), self.url)
        if (visibility == "private") != asked_private:
            logger.warning(
                "%s %s: %s already exists and stays %s; change that in its settings on the Hub",
                flag,
                str(asked_private).lower(),
                self.name,
                visibility,
            )

    def files(self, commit: str | None = None) -> dict[str, RepoFile]:
        """The files of a commit by their paths; None is the newest."""
        revision = commit or self._revision
        tree = self._api.list_repo_tree(self.name, repo_type=self._repo_type, recursive=True, revision=revision)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}

    def upload(
        self, folder: Path, *, message: str, paths: Sequence[str] | None = None, delete: Sequence[str] = ()
    ) -> str:
        """Upload a folder, or the `paths` of it, and delete the files of patterns `delete`; the commit."""
        if self._repo_type == "model" or not sys.stderr.isatty():
            disable_progress_bars()  # here, since other libraries enable them again
        commit = self._api.upload_folder(
            repo_id=self.name,
            folder_path=folder,
            repo_type=self._repo_type,
            commit_message=message,
            allow_patterns=None if paths is None else list(paths),
            delete_patterns=list(delete) or None,
            revision=self._revision,
        )
        return commit.oid

    def push(self, payload: UploadPayload) -> str:
        """Upload a payload of a training run; the commit."""
        return self.upload(payload.folder, message=f"Step {payload.step}", delete=payload.replaces)

    def wrong_files(self, files: Sequence[LocalFile], commit: str) -> str | None:
        """One line naming files that the commit lacks or has with other bytes; None if all arrived."""
        remote = with_retries(lambda: self.files(commit))
        wrong = sorted(file.path for file in files if not file.equals(remote.get(file.path)))
        shown = ", ".join(wrong[:SHOWN_FILES]) + (", ..." if len(wrong) > SHOWN_FILES else "")
        return f"{len(wrong)} of {len(files)} files arrived with other bytes ({shown})" if wrong else None


def download_files(name: str, patterns: Sequence[str], *, flag: str) -> Path:
    """Download files of a model repository; their folder in the Hub's cache, whose name is the commit.

    Raises:
        UserError: naming `flag`, when the repository does not exist or is not accessible.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except HUB_ERRORS as error:
        raise UserError(f"{flag} {name}: not a folder, and {read_problem(error)}") from None


def check_license(license_name: str) -> None:
    """Have the Hub check the license of a card before it is needed; `UserError` when it rejects the name."""
    card = RepoCard(f"---\nlicense: {license_name}\n---\n")
    try:
        with_retries(lambda: card.validate(repo_type="model"))
    except HUB_ERRORS as error:
        raise UserError(f"--license {license_name}: the Hub rejects it ({error_message(error)})") from None
