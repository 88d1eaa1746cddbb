"""Push a finished block store to the Hub and verify what arrived.

Files are compared by size and hash before and after the upload, so nothing is sent twice. manifest.json is committed
last: on the Hub, too, a data set that has one is complete.
"""

import logging
import sys
from pathlib import Path

from huggingface_hub import RepoFile, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils import validate_repo_id

from pretraining.cli.logs import IN_ONE_LINE
from pretraining.data.store.integrity import file_in_store, shard_file
from pretraining.data.store.manifest import MANIFEST_NAME, STORE_CONTENTS, StoreSpec, read_manifest
from pretraining.errors import UserError
from pretraining.hub.repository import LocalFile, Repository, hash_files
from pretraining.hub.retry import HUB_ERRORS, error_message, status_of, with_retries

logger = logging.getLogger(__name__)

REMEDIES = {
    401: "log in with `hf auth login`, or set HF_TOKEN to a token with write access",
    403: "use your own name or organization, and a token with write access",
    404: "use your own name or organization, and a token that may see it",
    429: "wait until your quota is renewed",
}


def check_token(repo_id: str) -> None:
    """Check the name of the data set and that there is a token, before hours of work.

    Raises:
        UserError: when this machine has no token, or the name is not one of a data set.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {repo_id}: not a valid data set name ({error}); use USER/NAME") from None
    if get_token() is None:
        raise UserError(f"--push_to_hub {repo_id}: no Hub token was found; {REMEDIES[401]}")


def push_block_store(store: Path, repo_id: str, *, private: bool) -> None:
    """Push the block store in `store` to data set `repo_id`, delete outdated files there, and verify the result.

    Raises:
        UserError: when the Hub refuses or cannot be reached, or the bytes that arrived are not those that were sent.
    """
    files = stored_files(store, flag="--output_dir")
    _warn_of_paths(read_manifest(store, flag="--output_dir").origin, repo_id)
    _log_client()
    repository = Repository(repo_id, "dataset")
    try:
        repository.create(private=private)
        repository.announce(asked_private=private, flag="--hub_private")
        with_retries(lambda: _upload_missing(repository, store, files))
        commit, visibility = repository.newest_commit()
        wrong = repository.wrong_files(files, commit)  # not of the branch, which others may move
    except HUB_ERRORS as error:
        raise UserError(_problem(error, repo_id, store)) from error
    if wrong is not None:
        raise UserError(f"--push_to_hub {repo_id}: {wrong}; run the same command again to send them again")
    logger.info("checked: the Hub has all %d files with the right sizes and hashes", len(files))
    logger.info("%s data set: %s at commit %s", visibility, repository.url, commit)
    logger.info('load it: load_dataset("%s", revision="%s")', repo_id, commit, extra=IN_ONE_LINE)
    next_command = "deepspeed --num_gpus=N pretrain.py --dataset %s --dataset_revision %s"
    logger.info("next: " + next_command, repo_id, commit, extra=IN_ONE_LINE)


def stored_files(store: Path, *, flag: str) -> list[LocalFile]:
    """Every file of a block store, checked as by `shard_file`; the hash of a shard is that of the manifest."""
    shards = read_manifest(store, flag=flag).shards
    for shard in shards:
        shard_file(store, shard, flag=flag)
    paths = {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()}
    others = {path for path in paths if path.split("/")[0] in STORE_CONTENTS} - {shard.path for shard in shards}
    found = hash_files(store, [file_in_store(store, path, flag=flag) for path in sorted(others)])
    return [LocalFile(store, shard.path, shard.num_bytes, shard.sha256) for shard in shards] + found


def _warn_of_paths(origin: StoreSpec, repo_id: str) -> None:
    """Inputs are recorded as they were given, for tools.trace; a home folder should not be published by oversight."""
    paths = [path for path in (origin.tokenizer.name, *(file.path for file in origin.sources)) if path.startswith("/")]
    if paths:
        logger.warning(
            "--push_to_hub %s: manifest.json and documents/ have %d absolute paths of this machine, such as %s; "
            "preprocess with relative paths to keep them private",
            repo_id,
            len(paths),
            paths[0],
        )


def _log_client() -> None:
    """Show what the Hub's client logs; as lines if stderr is not a terminal with progress bars."""
    logging.getLogger("huggingface_hub").handlers = logging.getLogger("pretraining").handlers
    if not sys.stderr.isatty():
        hub_logging.set_verbosity_info()


def _upload_missing(repository: Repository, store: Path, files: list[LocalFile]) -> None:
    """Upload what the Hub lacks, and delete what it has of another block store; two commits, or more of large ones."""
    remote = repository.files()
    missing = [file for file in files if not file.equals(remote.get(file.path))]
    outdated = _outdated_paths(remote, files, missing)
    if not missing and not outdated:
        logger.info("nothing to upload: the Hub has all %d files already", len(files))
        return
    num_bytes = sum(file.num_bytes for file in missing)
    logger.info("uploading %d of %d files, %.1f MB", len(missing), len(files), num_bytes / 1e6)
    contents = [file.path for file in missing if file.path != MANIFEST_NAME]
    if contents or outdated:
        repository.upload(store, message="Upload token blocks", paths=contents, delete=outdated)
    if len(contents) < len(missing):
        repository.upload(store, message="Upload manifest", paths=[MANIFEST_NAME])
    logger.info("uploaded %d files, %.1f MB", len(missing), num_bytes / 1e6)


def _outdated_paths(remote: dict[str, RepoFile], files: list[LocalFile], missing: list[LocalFile]) -> list[str]:
    """Files of another block store, which `load_dataset` would read with ours; its manifest must not outlive them."""
    ours = {file.path for file in files}
    outdated = [path for path in remote if path.split("/")[0] in STORE_CONTENTS and path not in ours]
    if MANIFEST_NAME in remote and any(file.path == MANIFEST_NAME for file in missing):
        outdated.append(MANIFEST_NAME)
    return outdated


def _problem(error: BaseException, repo_id: str, store: Path) -> str:
    status = status_of(error)
    remedy = REMEDIES.get(status or 0, "check the Hub's message" if status else "check the network")
    return (
        f"--push_to_hub {repo_id}: {error_message(error)}; {remedy}; the block store is finished in {store}, "
        "run the same command again to resume the upload"
    )
