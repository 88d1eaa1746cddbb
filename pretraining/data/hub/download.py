"""Bring a block store from the Hub into the Hub's cache, once for all processes of a machine, and check its hashes.

This happens before the processes join, so that no time-out of theirs can end a long download.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars

from pretraining.data.store.integrity import file_in_store, wrong_hashes
from pretraining.data.store.manifest import MANIFEST_NAME, Manifest, read_manifest
from pretraining.data.tokenize.tokenizer import TOKENIZER_FILES
from pretraining.errors import UserError
from pretraining.hub.retry import HUB_ERRORS, error_message, status_of
from pretraining.system.files import write_atomically
from pretraining.system.launchers import has_launcher, local_rank, meeting_dir, num_local_processes
from pretraining.system.locks import wait_for_lock

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
BEGIN_SECONDS = 120.0  # processes of one launcher start within seconds
STORE_VARIABLE = "PRETRAINING_STORE"  # where a process has found a store, for its children


def download_store(repo_id: str, *, revision: str | None) -> Path:
    """The folder of the cache with what training reads of a block store; its name is the commit.

    The first process of the machine downloads, the others wait for it and ask the Hub nothing: a branch that moves
    meanwhile cannot give them other blocks.

    Raises:
        UserError: when the Hub has no such block store for us.
    """
    if not has_launcher():
        return _download(repo_id, revision)
    name = hashlib.sha256(f"{repo_id}@{revision}".encode()).hexdigest()[:16]
    if (variable := f"{STORE_VARIABLE}_{name}") not in os.environ:
        os.environ[variable] = str(_meet(meeting_dir() / name, repo_id, revision))
    return Path(os.environ[variable])  # which the trials of this process, its children, have from it


def _meet(note: Path, repo_id: str, revision: str | None) -> Path:
    """What the first process of this machine has found, which it writes into a note for the others."""
    begun = note.with_suffix(".begun")
    if local_rank() == 0 and not note.is_file():  # it is there when the launcher has started its processes again
        begun.touch()
        try:
            write_atomically(note, str(_download(repo_id, revision)).encode())
        except BaseException:
            shutil.rmtree(note.parent, ignore_errors=True)
            raise
    _wait_for(note, begun)
    folder = Path(note.read_text(encoding="utf-8"))
    note.with_suffix(f".read-{local_rank()}").touch()
    if local_rank() == 0:
        _remove_when_read(note)
    return folder


def _wait_for(note: Path, begun: Path) -> None:
    """Wait for the first process of this machine; when that fails, the launcher ends this process as well."""
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


def _remove_when_read(note: Path) -> None:
    launcher = os.getppid()
    while len(list(note.parent.glob(f"{note.name}.read-*"))) < num_local_processes() and os.getppid() == launcher:
        time.sleep(POLL_SECONDS)
    for path in note.parent.glob(f"{note.name}*"):
        path.unlink()
    with suppress(OSError):  # not empty: another data set's note is there
        note.parent.rmdir()


def _download(repo_id: str, revision: str | None) -> Path:
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        # The manifest alone first: a data set of somebody else can be terabytes.
        folder = Path(hf_hub_download(repo_id, MANIFEST_NAME, repo_type="dataset", revision=revision)).parent
        manifest = read_manifest(folder, flag=f"--dataset {repo_id}")
        num_bytes = sum(shard.num_bytes for shard in manifest.shards)
        logger.info("data set: %s of the Hub at commit %s, %.1f MB of blocks", repo_id, folder.name, num_bytes / 1e6)
        wanted = [MANIFEST_NAME, *(f"tokenizer/{name}" for name in TOKENIZER_FILES)]
        wanted += [shard.path for shard in manifest.shards]
        snapshot_download(repo_id, repo_type="dataset", revision=folder.name, allow_patterns=wanted)
        _check_once(folder, manifest, f"--dataset {repo_id}")
    except UserError:
        raise
    except HUB_ERRORS as error:
        raise UserError(_problem(error, repo_id, revision)) from error
    return folder


def _check_once(folder: Path, manifest: Manifest, flag: str) -> None:
    """Read every shard, unless that was done before in this cache, maybe by another machine that shares it.

    Raises:
        UserError: when one is not as the manifest says.
    """
    files = {file_in_store(folder, shard.path, flag=flag): shard.sha256 for shard in manifest.shards}
    marker = folder.parents[1] / "checked" / f"{folder.name}.json"  # beside the Hub's own snapshots/ and blobs/
    keeps_marker = os.access(folder.parents[1], os.W_OK)
    if keeps_marker:
        marker.parent.mkdir(exist_ok=True)
    with wait_for_lock(marker.with_suffix(".lock")) if keeps_marker else nullcontext():
        found = json.dumps({path.name: [digest, *_stamp(path)] for path, digest in files.items()}).encode()
        if marker.is_file() and marker.read_bytes() == found:
            return
        for file, wrong in wrong_hashes(files, "checking the download"):
            raise UserError(_wrong_file(flag, file, wrong, files[file]))
        if keeps_marker:
            write_atomically(marker, found)


def _stamp(file: Path) -> tuple[int, int]:
    """What changes when a file is written again."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _wrong_file(flag: str, file: Path, found: str, expected: str) -> str:
    place = Path(os.path.realpath(file))
    # The Hub calls large files by their hashes, and its client calls those in the cache by the same names.
    remedy = (
        "the Hub has it so: ask its owner to push the data set again, or give another --dataset_revision"
        if found == place.name
        else f"delete {place} and start again to download it"
    )
    return f"{flag}: {file} has the SHA-256 {found}, its manifest says {expected}; {remedy}"


def _problem(error: BaseException, repo_id: str, revision: str | None) -> str:
    place = f"--dataset {repo_id}"
    if isinstance(error, RevisionNotFoundError):
        return f"--dataset_revision {revision}: {repo_id} has no such branch, tag or commit; give one it has"
    if isinstance(error, LocalEntryNotFoundError):
        return f"{place}: is no folder here, and the Hub cannot be reached ({error_message(error.__cause__ or error)})"
    if isinstance(error, EntryNotFoundError):
        return f"{place}: is no block store ({MANIFEST_NAME} is missing); make one with preprocess.py --push_to_hub"
    if status_of(error) in (401, 403, 404):
        return (
            f"{place}: is no folder here and no data set of the Hub that you may read ({error_message(error)}); check "
            "the name, make blocks with preprocess.py, or log in with `hf auth login`"
        )
    return f"{place}: the Hub does not give it ({error_message(error)}); start again to go on downloading"
