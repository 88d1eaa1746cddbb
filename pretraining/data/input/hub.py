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
from pretraining.data.input.find import HUB_SCHEME, InputFile, input_file
from pretraining.errors import UserError
from pretraining.hub.retry import HUB_ERRORS, read_problem

# hf://USER/NAME, then /CONFIG, @REVISION and :SPLIT where they are not the default
HUB_WORD = re.compile(rf"{HUB_SCHEME}({HUB_ID.pattern})(?:/([\w.-]+))?(?:@([\w./-]+))?(?::([\w.-]+))?")


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
        commit = HfApi().dataset_info(repo_id, revision=revision).sha  # `datasets` would hide why the Hub refuses
        with _away_from(Path(repo_id)):
            builder = datasets.load_dataset_builder(repo_id, config, revision=commit)
        splits = {str(name): list(urls) for name, urls in (builder.config.data_files or {}).items()}
        if (split or "train") not in splits:
            raise UserError(f"--data_files {word}: has no split {split or 'train'}; use one of {', '.join(splits)}")
        return [_hub_file(url, source, streaming) for url in splits[split or "train"]]
    except UserError:
        raise
    except HUB_ERRORS as error:
        raise UserError(f"--data_files {word}: {read_problem(error)}") from None


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
