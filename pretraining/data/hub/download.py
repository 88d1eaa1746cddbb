"""Download a block store into the Hub's cache, once for all processes of a machine, and check its hashes.

This happens before the process group is initialized, whose timeout would end a long download.
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
from pretraining.data.tokenize.reference import TOKENIZER_FILES
from pretraining.errors import UserError
from pretraining.hub.retry import HUB_ERRORS, error_message, read_problem, status_of
from pretraining.system.files import write_atomically
from pretraining.system.launchers import (
    SUPERVISOR_VARIABLE,
    has_launcher,
    local_rank,
    meeting_dir,
    num_local_processes,
)
from pretraining.system.locks import wait_for_lock

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
START_SECONDS = 120.0  # processes of one launcher start within seconds
STORE_VARIABLE = "PRETRAINING_STORE"  # where a process found a store, for its children


def download_store(repo_id: str, *, revision: str | None) -> Path:
    """Download what training reads of a block store; the folder in the cache, whose name is the commit.

    The first process of the machine downloads, and the others wait without asking the Hub, so that all use the same
    commit of a branch that moves meanwhile.

    Raises:
        UserError: when the block store does not exist or is not accessible.
    """
    name = hashlib.sha256(f"{repo_id}@{revision}".encode()).hexdigest()[:16]
    if not has_launcher():
        return _download_pinned(name, repo_id, revision)
    if (variable := f"{STORE_VARIABLE}_{name}") not in os.environ:
        os.environ[variable] = str(_download_once(meeting_dir() / name, repo_id, revision))
    return Path(os.environ[variable])  # children of this process, e.g. trials, inherit it


def _download_once(note: Path, repo_id: str, revision: str | None) -> Path:
    """The first process of this machine downloads, and writes the folder into file `note` for the others."""
    started = note.with_suffix(".started")
    if local_rank() == 0 and not note.is_file():  # it exists if the launcher restarted its processes
        started.touch()
        try:
            write_atomically(note, str(_download_pinned(note.name, repo_id, revision)).encode())
        except BaseException:
            shutil.rmtree(note.parent, ignore_errors=True)
            raise
    _wait_for(note, started)
    folder = Path(note.read_text(encoding="utf-8"))
    note.with_suffix(f".read-{local_rank()}").touch()
    if local_rank() == 0:
        _remove_when_read(note)
    return folder


def _wait_for(note: Path, started: Path) -> None:
    """Wait for the first process of this machine; if that fails, the launcher ends this process as well."""
    launcher = os.getppid()
    started_at = time.monotonic()
    while not note.is_file():
        if os.getppid() != launcher:
            raise UserError("--dataset: the launcher died; run the same command again")
        if not started.is_file() and time.monotonic() - started_at > START_SECONDS:
            raise UserError(
                "--dataset: the first process of this machine does not download it; use the launcher on pretrain.py "
                "itself, not on a script, or download the data set before"
            )
        time.sleep(POLL_SECONDS)


def _remove_when_read(note: Path) -> None:
    launcher = os.getppid()
    while len(list(note.parent.glob(f"{note.name}.read-*"))) < num_local_processes() and os.getppid() == launcher:
        time.sleep(POLL_SECONDS)
    for path in note.parent.glob(f"{note.name}*"):
        path.unlink()
    with suppress(OSError):  # not empty: another data set has a note
        note.parent.rmdir()


def _download_pinned(key: str, repo_id: str, revision: str | None) -> Path:
    """Download the commit that the first attempt of tools.supervise used: a branch may have moved since.

    The commit is in file `key`.commit of the supervisor's folder; without a supervisor nothing is pinned.
    """
    if SUPERVISOR_VARIABLE not in os.environ:
        return _download(repo_id, revision)
    commit = Path(os.environ[SUPERVISOR_VARIABLE]) / f"{key}.commit"
    with suppress(FileNotFoundError):
        revision = commit.read_text(encoding="utf-8")
    folder = _download(repo_id, revision)
    with suppress(OSError):  # the supervisor was killed, or is on another machine
        write_atomically(commit, folder.name.encode())
    return folder


def _download(repo_id: str, revision: str | None) -> Path:
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        # The manifest first: other data sets can be terabytes.
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
    """Check the hash of every shard, unless this was done before in this cache."""
    files = {file_in_store(folder, shard.path, flag=flag): shard.sha256 for shard in manifest.shards}
    marker = folder.parents[1] / "checked" / f"{folder.name}.json"  # beside the Hub's own snapshots/ and blobs/
    keeps_marker = os.access(folder.parents[1], os.W_OK)
    if keeps_marker:
        marker.parent.mkdir(exist_ok=True)
    with wait_for_lock(marker.with_suffix(".lock")) if keeps_marker else nullcontext():
        stats = {path: path.stat() for path in files}
        rows = {p.name: [sha256, stats[p].st_size, stats[p].st_mtime_ns] for p, sha256 in files.items()}
        found = json.dumps(rows).encode()
        if marker.is_file() and marker.read_bytes() == found:
            return
        for file, wrong in wrong_hashes(files, "checking the download"):
            raise UserError(_wrong_file(flag, file, wrong, files[file]))
        if keeps_marker:
            write_atomically(marker, found)


def _wrong_file(flag: str, file: Path, found: str, expected: str) -> str:
    place = Path(os.path.realpath(file))
    # The Hub's client names large files in the cache by their hashes on the Hub.
    remedy = (
        "the Hub has the same bytes: ask the owner to push the data set again, or use another --dataset_revision"
        if found == place.name
        else f"delete {place} and run the same command again to download it"
    )
    return f"{flag}: {file} has the SHA-256 {found}, the manifest has {expected}; {remedy}"


def _problem(error: BaseException, repo_id: str, revision: str | None) -> str:
    place = f"--dataset {repo_id}"
    if isinstance(error, RevisionNotFoundError):
        return f"--dataset_revision {revision}: {repo_id} has no such branch, tag or commit; use an existing one"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{place}: not a block store ({MANIFEST_NAME} is missing); push one with preprocess.py --push_to_hub"
    if status_of(error) in (401, 403, 404):
        return (
            f"{place}: neither a local folder nor a data set of the Hub that you may read ({error_message(error)}); "
            "check the name, run preprocess.py, or log in with `hf auth login`"
        )
    return f"{place}: not a local folder, and {read_problem(error)}"
