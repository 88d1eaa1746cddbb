"""Push a finished block store to the Hub, so that it arrives whole or is seen not to have.

What the Hub has already is never sent again: files are compared by size and hash before the upload, and after it.
manifest.json goes with the last files, so that on the Hub, too, a data set that has one is complete.
"""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, RepoFile, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import disable_progress_bars, validate_repo_id
from huggingface_hub.utils import logging as hub_logging

from pretraining.cli.logs import IN_ONE_LINE
from pretraining.data.hub.stored_files import stored_files
from pretraining.data.store.manifest import MANIFEST_NAME, STORE_CONTENTS, StoreSpec, read_manifest
from pretraining.errors import UserError
from pretraining.hub.remote_files import StoredFile
from pretraining.hub.retry import HUB_ERRORS, error_message, status_of, with_retries

logger = logging.getLogger(__name__)

COMMIT_BYTES = 5_000_000_000  # few commits: the Hub takes 128 an hour
COMMIT_FILES = 200
REMEDIES = {
    401: "log in with `hf auth login`, or set HF_TOKEN to a token with write access",
    403: "give your own name or organization, and a token with write access",
    404: "give your own name or organization, and a token that may see it",
    429: "wait until your quota is renewed",
}
SHOWN_FILES = 5


@dataclass(frozen=True)
class RemoteStore:
    """The newest commit of a data set of the Hub."""

    commit: str
    private: bool
    files: dict[str, RepoFile]


def check_token(repo_id: str) -> None:
    """Refuse to begin hours of work that cannot be pushed for want of a token.

    Raises:
        UserError: when this machine has none, or the name can be no data set's.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {repo_id}: is no name of a data set ({error}); give USER/NAME") from None
    if get_token() is None:
        raise UserError(f"--push_to_hub {repo_id}: there is no token of the Hub; {REMEDIES[401]}")


def push_block_store(store: Path, repo_id: str, *, private: bool) -> None:
    """Make the data set `repo_id` of the Hub hold the block store in `store`, and check that it does.

    Raises:
        UserError: when the Hub refuses or cannot be reached, or what arrived is not what was sent.
    """
    files = stored_files(store, flag="--output_dir")
    _warn_of_paths(read_manifest(store, flag="--output_dir").origin, repo_id)
    _speak_in_lines()
    api = HfApi()
    try:
        url = with_retries(lambda: api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True))
        info = with_retries(lambda: api.dataset_info(repo_id))
        _announce(repo_id, url, asked_private=private, is_private=bool(info.private))
        with_retries(lambda: _upload_missing(api, repo_id, store, files))
        remote = with_retries(lambda: _remote_store(api, repo_id))
    except HUB_ERRORS as error:
        raise UserError(_problem(error, repo_id, store)) from error
    _check_arrival(repo_id, store, files, remote)
    _report(repo_id, url, remote)


def _warn_of_paths(origin: StoreSpec, repo_id: str) -> None:
    """Inputs are named as they were given, for tools.trace; a home folder should not be published by oversight."""
    paths = [path for path in (origin.tokenizer.name, *(file.path for file in origin.sources)) if path.startswith("/")]
    if paths:
        logger.warning(
            "--push_to_hub %s: manifest.json and documents/ have %d absolute paths of this machine, such as %s; "
            "preprocess with relative paths to keep them private",
            repo_id,
            len(paths),
            paths[0],
        )


def _speak_in_lines() -> None:
    """Have the client tell its progress as lines where there is no terminal for its bars."""
    logging.getLogger("huggingface_hub").handlers = logging.getLogger("pretraining").handlers
    if not sys.stderr.isatty():
        disable_progress_bars()
        hub_logging.set_verbosity_info()


def _remote_store(api: HfApi, repo_id: str) -> RemoteStore:
    info = api.dataset_info(repo_id)
    assert info.sha is not None
    tree = api.list_repo_tree(repo_id, repo_type="dataset", revision=info.sha, recursive=True)
    files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    return RemoteStore(info.sha, bool(info.private), files)


def _announce(repo_id: str, url: str, *, asked_private: bool, is_private: bool) -> None:
    logger.info("pushing to the %s data set %s", _visibility(is_private), url)
    if is_private != asked_private:
        logger.warning(
            "--hub_private %s: %s was there before and stays %s; change that in its settings on the Hub",
            str(asked_private).lower(),
            repo_id,
            _visibility(is_private),
        )


def _upload_missing(api: HfApi, repo_id: str, store: Path, files: list[StoredFile]) -> None:
    """Send what the Hub lacks, and take away what it has of another block store."""
    remote = _remote_store(api, repo_id)
    missing = [file for file in files if not file.equals(remote.files.get(file.path))]
    outdated = _outdated_paths(remote, files, missing)
    if not missing and not outdated:
        logger.info("nothing to upload: the Hub has all %d files already", len(files))
        return
    total_bytes = sum(file.num_bytes for file in missing)
    logger.info("uploading %d of %d files, %.1f MB", len(missing), len(files), total_bytes / 1e6)
    sent: list[StoredFile] = []
    for batch in _batches(missing):
        api.upload_folder(
            repo_id=repo_id,
            folder_path=store,
            repo_type="dataset",
            commit_message="Upload token blocks",
            allow_patterns=[file.path for file in batch],
            delete_patterns=None if sent else outdated,
        )
        sent += batch
        sent_bytes = sum(file.num_bytes for file in sent)
        logger.info("uploaded %d files, %.1f of %.1f MB", len(sent), sent_bytes / 1e6, total_bytes / 1e6)


def _outdated_paths(remote: RemoteStore, files: list[StoredFile], missing: list[StoredFile]) -> list[str]:
    """Files of another block store, which `load_dataset` would read with ours; its manifest must not outlive them."""
    ours = {file.path for file in files}
    outdated = [path for path in remote.files if path.split("/")[0] in STORE_CONTENTS and path not in ours]
    if MANIFEST_NAME in remote.files and any(file.path == MANIFEST_NAME for file in missing):
        outdated.append(MANIFEST_NAME)
    return outdated


def _batches(files: list[StoredFile]) -> Iterator[list[StoredFile]]:
    """Files by commit, at least one batch."""
    batch: list[StoredFile] = []
    for file in files:
        if batch and (len(batch) == COMMIT_FILES or sum(f.num_bytes for f in batch) + file.num_bytes > COMMIT_BYTES):
            yield batch
            batch = []
        batch.append(file)
    yield batch


def _check_arrival(repo_id: str, store: Path, files: list[StoredFile], remote: RemoteStore) -> None:
    wrong = [file.path for file in files if not file.equals(remote.files.get(file.path))]
    if wrong:
        shown = ", ".join(wrong[:SHOWN_FILES]) + (", ..." if len(wrong) > SHOWN_FILES else "")
        raise UserError(
            f"--push_to_hub {repo_id}: {len(wrong)} of {len(files)} files arrived with other bytes than those of "
            f"{store} ({shown}); run the same command again to send them anew"
        )
    logger.info("checked: the Hub has all %d files with the right sizes and hashes", len(files))


def _problem(error: BaseException, repo_id: str, store: Path) -> str:
    status = status_of(error)
    remedy = REMEDIES.get(status or 0, "check what the Hub says" if status else "check the network")
    return (
        f"--push_to_hub {repo_id}: {error_message(error)}; {remedy}; the block store is finished in {store}, "
        "run the same command again to go on uploading"
    )


def _report(repo_id: str, url: str, remote: RemoteStore) -> None:
    logger.info("%s data set: %s at commit %s", _visibility(remote.private), url, remote.commit)
    logger.info('load it: load_dataset("%s", revision="%s")', repo_id, remote.commit, extra=IN_ONE_LINE)
    next_command = "deepspeed --num_gpus=N pretrain.py --dataset %s --dataset_revision %s"
    logger.info("next: " + next_command, repo_id, remote.commit, extra=IN_ONE_LINE)


def _visibility(is_private: bool) -> str:
    return "private" if is_private else "public"
