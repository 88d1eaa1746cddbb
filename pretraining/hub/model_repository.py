"""The model repository of a run on the Hub: what it is, and what is sent to it."""

import logging
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, RepoFile, constants
from huggingface_hub.repocard import RepoCard
from huggingface_hub.utils import disable_progress_bars
from transformers import TrainingArguments

from pretraining.errors import UserError
from pretraining.hub.push_queue import Parcel
from pretraining.hub.remote_files import StoredFile
from pretraining.hub.retry import HUB_ERRORS, error_message, with_retries
from pretraining.system.files import sha256_of

logger = logging.getLogger(__name__)


class ModelRepository:
    """A repository that was made, with the token that writes into it."""

    def __init__(self, name: str, arguments: TrainingArguments) -> None:
        self.name = name
        self.url = f"{constants.ENDPOINT}/{name}"
        self._revision = arguments.hub_revision
        self._api = HfApi(token=arguments.hub_token)

    def announce(self, *, asked_private: bool) -> None:
        """Say where the run goes, and who can see it."""
        is_private = bool(with_retries(lambda: self._api.model_info(self.name)).private)
        logger.info("pushing to the %s model %s", _visibility(is_private), self.url)
        if is_private != asked_private:
            logger.warning(
                "--hub_private_repo %s: %s was there before and stays %s; change that in its settings on the Hub",
                str(asked_private).lower(),
                self.name,
                _visibility(is_private),
            )

    def push(self, parcel: Parcel) -> str:
        """Send what the Hub lacks, and take away what is replaced; the commit."""
        disable_progress_bars()  # other libraries switch them on again
        done = self._api.upload_folder(
            repo_id=self.name,
            folder_path=parcel.folder,
            commit_message=f"Step {parcel.step}",
            delete_patterns=list(parcel.replaces),
            revision=self._revision,
        )
        return done.oid

    def wrong_files(self, folder: Path) -> Sequence[str]:
        """The files of a folder that the Hub has not, or with other bytes."""
        tree = self._api.list_repo_tree(self.name, recursive=True, revision=self._revision)
        remote = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        paths = [path for path in folder.rglob("*") if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in paths]
        files = [
            StoredFile(folder, name, path.stat().st_size, sha256_of(path))
            for name, path in zip(names, paths, strict=True)
        ]
        return sorted(file.path for file in files if not file.equals(remote.get(file.path)))


def check_license(license_name: str) -> None:
    """Have the Hub look at the licence of a card before it is needed.

    Raises:
        UserError: when it knows none of that name.
    """
    card = RepoCard(f"---\nlicense: {license_name}\n---\n")
    try:
        with_retries(lambda: card.validate(repo_type="model"))
    except HUB_ERRORS as error:
        raise UserError(f"--license {license_name}: the Hub does not take it ({error_message(error)})") from None


def _visibility(is_private: bool) -> str:
    return "private" if is_private else "public"
