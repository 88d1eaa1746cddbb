"""Bring a block store from the Hub into the Hub's cache, once for all processes of a machine.

This happens before the processes join, so that no time-out of theirs can end a long download.
"""

import logging
import os
import sys
import tempfile
import time
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars

from pretraining.cli.errors import UserError
from pretraining.cli.launchers import has_launcher, launcher_identity, local_rank
from pretraining.corpus.hub_errors import HUB_ERRORS, reason, status_of
from pretraining.corpus.manifest import MANIFEST_NAME, read_manifest

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
BEGIN_SECONDS = 120.0  # processes of one launcher start within seconds


def download_store(repo_id: str, *, revision: str | None) -> Path:
    """The folder of the cache with what training reads of a block store; its name is the commit.

    The first process of the machine downloads, the others wait for it and ask the Hub nothing: a branch that moves
    meanwhile cannot give them other blocks.

    Raises:
        UserError: when the Hub has no such block store for us.
    """
    if not has_launcher():
        return _download(repo_id, revision)
    note = Path(tempfile.gettempdir()) / f"pretraining-blocks-{launcher_identity()}"
    begun, partial = note.with_suffix(".begun"), note.with_suffix(".partial")
    if local_rank() == 0 and not note.is_file():  # it is there when the launcher has started its processes again
        begun.touch()
        partial.write_text(str(_download(repo_id, revision)), encoding="utf-8")
        partial.replace(note)
    return _wait_for(note, begun)


def _wait_for(note: Path, begun: Path) -> Path:
    """What the first process of this machine found; when that fails, the launcher ends this process as well."""
    launcher = os.getppid()
    started_at = time.monotonic()
    while not note.is_file():
        if os.getppid() != launcher:
            raise UserError("--dataset: the launcher is gone; start again")
        if not begun.is_file() and time.monotonic() - started_at > BEGIN_SECONDS:
            raise UserError(
                "--dataset: the first process of this machine does not download it; have the launcher start "
                "pretrain.py itself, without a script in between, or download the data set before"
            )
        time.sleep(POLL_SECONDS)
    return Path(note.read_text(encoding="utf-8"))


def _download(repo_id: str, revision: str | None) -> Path:
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        # The manifest alone first: a data set of somebody else can be terabytes.
        folder = Path(hf_hub_download(repo_id, MANIFEST_NAME, repo_type="dataset", revision=revision)).parent
        manifest = read_manifest(folder, flag=f"--dataset {repo_id}")
        num_bytes = sum(shard.num_bytes for shard in manifest.shards)
        logger.info("data set: %s of the Hub at commit %s, %.1f MB of blocks", repo_id, folder.name, num_bytes / 1e6)
        wanted = [MANIFEST_NAME, "tokenizer/*", *(shard.path for shard in manifest.shards)]
        snapshot_download(repo_id, repo_type="dataset", revision=folder.name, allow_patterns=wanted)
    except UserError:
        raise
    except HUB_ERRORS as error:
        raise UserError(_problem(error, repo_id, revision)) from error
    return folder


def _problem(error: BaseException, repo_id: str, revision: str | None) -> str:
    place = f"--dataset {repo_id}"
    if isinstance(error, RevisionNotFoundError):
        return f"--dataset_revision {revision}: {repo_id} has no such branch, tag or commit; give one it has"
    if isinstance(error, LocalEntryNotFoundError):
        return f"{place}: is no folder here, and the Hub cannot be reached ({reason(error.__cause__ or error)})"
    if isinstance(error, EntryNotFoundError):
        return f"{place}: is no block store ({MANIFEST_NAME} is missing); make one with preprocess.py --push_to_hub"
    if status_of(error) in (401, 403, 404):
        return (
            f"{place}: is no folder here and no data set of the Hub that you may read ({reason(error)}); check the "
            "name, make blocks with preprocess.py, or log in with `hf auth login`"
        )
    return f"{place}: the Hub does not give it ({reason(error)}); start again to go on downloading"
