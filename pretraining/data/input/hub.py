"""Data sets of the Hub as input: `datasets` finds the files of a split, and the readers of this package read them.

A file is recorded with its commit, so the input stays the same if the data set changes; its hash is the Hub's.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import datasets
from huggingface_hub import HfApi, HfFileSystem, RepoFile, hf_hub_download
from huggingface_hub.hf_file_system import HfFileSystemResolvedRepositoryPath

from pretraining.cli.arguments.preprocess import HUB_ID
from pretraining.data.input.files import ARCHIVE, FORMATS, HUB_SCHEME, InputFile, input_file, suffixes_of
from pretraining.errors import UserError, raise_problems
from pretraining.hub.retry import HUB_ERRORS, read_problem

# hf://USER/NAME, then /CONFIG, @REVISION and :SPLIT where they are not the default
HUB_WORD = re.compile(rf"{HUB_SCHEME}({HUB_ID.pattern})(?:/([\w.-]+))?(?:@([\w./-]+))?(?::([\w.-]+))?")

# Of archives, and of token files, which need their index.
DISK_SUFFIXES = (ARCHIVE, *(suffix for suffix, kind in FORMATS.items() if kind == "tokens"))
EXPORT_REVISION = "refs/convert/parquet"
EXPORTED_FILE = re.compile(r"(?P<config>[^/]+)/(?P<split>[^/]+)/\d+\.parquet")


def hub_files(word: str, source: str | None, *, streaming: bool) -> list[InputFile]:
    """The files of one split, downloaded into the Hub's cache, or streamed later if `streaming`.

    Raises:
        UserError: when data set, config or split do not exist or are not accessible, or the format is not supported.
    """
    match = HUB_WORD.fullmatch(word)
    if match is None:
        raise UserError(f"--data_files {word}: not of the form hf://USER/NAME/CONFIG@REVISION:SPLIT")
    repo_id, config, revision, split = match.groups()
    try:
        splits = _splits_of(repo_id, config, revision)
        if (split or "train") not in splits:
            raise UserError(f"--data_files {word}: has no split {split or 'train'}; use one of {', '.join(splits)}")
        urls = splits[split or "train"]
        raise_problems(  # before the first is downloaded
            f"--data_files {url}: is read only from a disk; download it, and pass its path"
            for url in urls
            if suffixes_of(Path(url))[0] in DISK_SUFFIXES
        )
        return [_hub_file(url, source, streaming) for url in urls]
    except UserError:
        raise
    except HUB_ERRORS as error:
        raise UserError(f"--data_files {word}: {read_problem(error)}") from None


def _splits_of(repo_id: str, config: str | None, revision: str | None) -> dict[str, list[str]]:
    """The files of each split."""
    info = HfApi().dataset_info(repo_id, revision=revision)  # `datasets` would hide why the Hub refuses
    if any(file.rfilename == f"{Path(repo_id).name}.py" for file in info.siblings or ()):
        if revision is not None:
            raise UserError(
                f"--data_files {HUB_SCHEME}{repo_id}@{revision}: the data set is a script, of which the Hub keeps only "
                "the newest result; leave out @REVISION (the store records the commit)"
            )
        return _exported_splits(repo_id, config)
    with _away_from(Path(repo_id)):
        builder = datasets.load_dataset_builder(repo_id, config, revision=info.sha)
    return {str(name): list(urls) for name, urls in (builder.config.data_files or {}).items()}


def _exported_splits(repo_id: str, config: str | None) -> dict[str, list[str]]:
    """The files of each split of a data set that is a script, which `datasets` no longer runs.

    The Hub has run such scripts itself, and keeps what they made as Parquet files CONFIG/SPLIT/0000.parquet.
    """
    commit = HfApi().dataset_info(repo_id, revision=EXPORT_REVISION).sha
    names = HfApi().list_repo_files(repo_id, repo_type="dataset", revision=EXPORT_REVISION)
    found = [match for match in map(EXPORTED_FILE.fullmatch, sorted(names)) if match is not None]
    configs = sorted({match["config"] for match in found})
    chosen = config or next((name for name in ("default", Path(repo_id).name) if name in configs), None)
    if chosen not in configs:
        raise UserError(
            f"--data_files {HUB_SCHEME}{repo_id}: has no config {chosen or 'by default'}; use one of "
            f"{', '.join(configs)}, e.g. {HUB_SCHEME}{repo_id}/{configs[0] if configs else 'CONFIG'}"
        )
    splits: dict[str, list[str]] = {}
    for match in found:
        if match["config"] == chosen:
            splits.setdefault(match["split"], []).append(f"hf://datasets/{repo_id}@{commit}/{match.string}")
    return splits


@contextlib.contextmanager
def _away_from(folder: Path) -> Iterator[None]:
    """Work in another folder if this relative path exists: `datasets` would read it instead of the Hub's data set."""
    if not folder.exists():
        yield
        return
    with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
        yield


def open_hub_file(location: str) -> BinaryIO:
    """Stream a file, by requests of 5 MB."""
    return HfFileSystem().open(location, "rb")


def _hub_file(url: str, source: str | None, streaming: bool) -> InputFile:
    place = HfFileSystem().resolve_path(url)
    assert isinstance(place, HfFileSystemResolvedRepositoryPath)
    (info,) = HfApi().get_paths_info(place.repo_id, [place.path_in_repo], repo_type="dataset", revision=place.revision)
    assert isinstance(info, RepoFile)
    location = url
    if not streaming:
        location = hf_hub_download(place.repo_id, place.path_in_repo, repo_type="dataset", revision=place.revision)
    known_hash = info.lfs.sha256 if info.lfs else f"git {info.blob_id}"
    return input_file(url, source, num_bytes=info.size, location=location, known_hash=known_hash)
