"""Find the input files of --data_files: paths, folders, globs, zip archives and data sets of the Hub."""

import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from pretraining.data.input.files import (
    HUB_SCHEME,
    READ_SUFFIXES,
    InputFile,
    archive_of,
    files_at,
    is_read_in_folders,
    warn_of_others,
)
from pretraining.data.input.megatron_index import is_index
from pretraining.errors import UserError, raise_problems

logger = logging.getLogger(__name__)

NAMED_SOURCE = re.compile(r"([\w-]+)=(.+)")


def find_inputs(
    data_files: Sequence[str], *, streaming: bool = False, output_dir: Path | None = None, takes_tokens: bool = False
) -> list[InputFile]:
    """The files of `--data_files` in its order; those of a folder, glob or zip archive sorted by name.

    Files of the Hub are downloaded, or streamed if `streaming`. `output_dir` must not be inside an input folder.
    `takes_tokens`: files of token ids are input, too.

    Raises:
        UserError: all problems at once: words that match no file, and files that are empty, unreadable or named twice.
    """
    problems: list[str] = []
    files = []
    for word in data_files:
        try:
            files += _files_of(word, streaming, problems)
        except OSError as error:
            problems.append(f"--data_files {error.filename or word}: cannot be read ({error.strerror}); check the path")
    problems += [*_repeated(files), *_unpacked(files)]
    if not takes_tokens:
        tokens = (file.path for file in files if file.format == "tokens")
        problems += [f"--data_files {path}: has token ids, this program reads text; pass the text" for path in tokens]
    if output_dir is not None:
        problems += [
            f"--output_dir {output_dir}: is in {word}, whose files are the input; choose a folder outside of it"
            for word in data_files
            if _lies_in(output_dir, word)
        ]
    raise_problems(problems)
    return files


def _lies_in(output_dir: Path, word: str) -> bool:
    """Whether `word` is a folder that contains `output_dir`; other checks report invalid names."""
    try:
        return Path(word).is_dir() and output_dir.resolve().is_relative_to(Path(word).resolve())
    except (OSError, RuntimeError):
        return False


def _repeated(files: Sequence[InputFile]) -> list[str]:
    """Problems of files that are named twice, also by another path or a link."""
    places: dict[str, str] = {}
    problems = []
    for file in files:
        place = (file.location if file.is_remote else os.path.realpath(file.location)) + f"/{file.member or ''}"
        if place in places:
            problems.append(f"--data_files {file.path}: is named twice (as {places[place]}); name it once")
        places[place] = file.path
    return problems


def _unpacked(files: Sequence[InputFile]) -> list[str]:
    """Problems of archives that are beside what was unpacked from them: a file of this name and size."""
    plain = {os.path.realpath(file.location): file for file in files if not (file.member or file.is_remote)}
    problems = []
    for file in files:
        if file.member is None:
            continue
        archive = Path(file.location)
        for folder in (archive.parent, archive.with_suffix("")):
            other = plain.get(os.path.realpath(folder / file.member))
            if other is not None and other.num_bytes == file.num_bytes:
                problems.append(
                    f"--data_files {file.path}: is unpacked beside its archive, as {other.path}, and would be read "
                    "twice; move the archive or the unpacked files elsewhere"
                )
    return problems


def _files_of(word: str, streaming: bool, problems: list[str]) -> list[InputFile]:
    match = NAMED_SOURCE.fullmatch(word)
    is_path = match is None or Path(word).exists() or bool(_matches(word))  # lang=en/*.jsonl may be a folder's name
    source, pattern = (None, word) if match is None or is_path else match.groups()
    if pattern.startswith(HUB_SCHEME):
        from pretraining.data.input.hub import hub_files  # it imports `datasets`, a second that only this needs

        return hub_files(pattern, source, streaming=streaming)
    files = []
    for path in _paths_of(pattern, problems):
        try:
            files += files_at(path, source, may_be_empty=str(path) != pattern)
        except UserError as error:
            shown = str(path).encode("utf-8", errors="backslashreplace").decode()
            problems.append(f"--data_files {shown}: {error}")
    return files


def _paths_of(pattern: str, problems: list[str]) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        found = _files_below(path)
        if not found:
            problems.append(f"--data_files {path}: {_empty_folder_problem(path)}")
        return found
    if path.exists() or archive_of(path) is not None or not glob.has_magic(pattern):
        return [path]
    found = [match for match in _matches(pattern) if match.is_file() and not is_index(match)]
    if not found:
        problems.append(f"--data_files {pattern}: no file matches; check the pattern")
    return found


def _empty_folder_problem(folder: Path) -> str:
    token_file = min(folder.rglob("*.bin"), default=None)
    if token_file is None:
        return f"the folder has no {', '.join(READ_SUFFIXES)} file"
    return (
        f"of .bin files in a folder only those with an index (.idx) are read, and no other file is there; to read the "
        f"others name them, e.g. {token_file.parent}/*.bin"
    )


def _matches(pattern: str) -> list[Path]:
    return sorted(Path(match) for match in glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path needs a root


def _files_below(folder: Path) -> list[Path]:
    """Files of known formats in `folder` and its subfolders, through links as well; the others are counted."""

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen = {os.path.realpath(folder)}
    num_others = 0
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [name for name in folders if os.path.realpath(Path(place, name)) not in seen]
        seen.update(os.path.realpath(Path(place, name)) for name in folders)  # a link may lead back to its folder
        paths = [Path(place, name) for name in names if not is_index(Path(place, name))]
        known = [path for path in paths if is_read_in_folders(path)]
        num_others += len(paths) - len(known)
        found += known
    warn_of_others(folder, num_others)
    return sorted(found)
