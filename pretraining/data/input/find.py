"""Find the input files of --data_files: paths, folders, globs and data sets of the Hub, with or without a source."""

import glob
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.data.input.documents import has_utf8
from pretraining.errors import raise_problems

logger = logging.getLogger(__name__)

Format = Literal["jsonl", "parquet", "text"]
Compression = Literal["gzip", "zstd", "xz"]
FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
}
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".xz": "xz"}
HUB_SCHEME = "hf://"
NAMED_SOURCE = re.compile(r"([\w-]+)=(.+)")


@dataclass(frozen=True)
class InputFile:
    """One file of the input.

    `source` is the name from --data_files NAME=FILES; None if its records or its file name decide. `path` is recorded;
    the file is read at `location`, which differs for files of the Hub, whose hash is known as well.
    """

    path: str
    source: str | None
    format: Format
    compression: Compression | None
    num_bytes: int
    location: str
    known_hash: str | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it is streamed from the Hub."""
        return self.location.startswith(HUB_SCHEME)

    @property
    def default_source(self) -> str:
        """The source of documents without one: the file's name up to its first dot."""
        return self.source or Path(self.path).name.split(".")[0]


def find_inputs(
    data_files: Sequence[str], *, streaming: bool = False, output_dir: Path | None = None
) -> list[InputFile]:
    """The files of `--data_files` in its order; those of a folder or glob sorted by name.

    Files of the Hub are downloaded, or streamed if `streaming`. `output_dir` must not be inside an input folder.

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
    problems += _repeated(files)
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
        place = file.location if file.is_remote else os.path.realpath(file.location)
        if place in places:
            problems.append(f"--data_files {file.path}: is named twice (as {places[place]}); name it once")
        places[place] = file.path
    return problems


def input_file(
    path: str, source: str | None, *, num_bytes: int, location: str, known_hash: str | None = None
) -> InputFile:
    """A file with the format and compression of its name; JSON lines if the name has neither."""
    suffix, compression = _suffixes(Path(path))
    return InputFile(path, source, FORMATS.get(suffix, "jsonl"), compression, num_bytes, location, known_hash)


def _files_of(word: str, streaming: bool, problems: list[str]) -> list[InputFile]:
    match = NAMED_SOURCE.fullmatch(word)
    is_path = match is None or Path(word).exists() or bool(_matches(word))  # lang=en/*.jsonl may be a folder's name
    source, pattern = (None, word) if match is None or is_path else match.groups()
    if pattern.startswith(HUB_SCHEME):
        from pretraining.data.input.hub import hub_files  # it imports `datasets`, a second that only this needs

        return hub_files(pattern, source, streaming=streaming)
    files = []
    for path in _paths_of(pattern, problems):
        problem = _file_problem(path, may_be_empty=str(path) != pattern)
        if problem:
            shown = str(path).encode("utf-8", errors="backslashreplace").decode()
            problems.append(f"--data_files {shown}: {problem}")
        else:
            files.append(input_file(str(path), source, num_bytes=path.stat().st_size, location=str(path)))
    return files


def _paths_of(pattern: str, problems: list[str]) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        found = _files_below(path)
        if not found:
            problems.append(f"--data_files {path}: the folder has no {', '.join(FORMATS)} file")
        return found
    if path.exists() or not glob.has_magic(pattern):
        return [path]
    found = [match for match in _matches(pattern) if match.is_file()]
    if not found:
        problems.append(f"--data_files {pattern}: no file matches; check the pattern")
    return found


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
        known = [name for name in names if _suffixes(Path(name))[0] in FORMATS]
        num_others += len(names) - len(known)
        found += [Path(place, name) for name in known]
    if num_others:
        logger.warning("%s: %s files of other formats in it are not read", folder, f"{num_others:,}")
    return sorted(found)


def _suffixes(path: Path) -> tuple[str, Compression | None]:
    """The suffix of a file's format, and its compression."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    inner = path.with_suffix("") if compression else path
    return inner.suffix.lower(), compression


def _file_problem(path: Path, *, may_be_empty: bool) -> str | None:
    if not path.exists():
        return "file not found; check the path"
    if not path.is_file():
        return "not a regular file; name the files in it"
    if not has_utf8(str(path)):
        return "the file name is not UTF-8; rename it"
    with path.open("rb") as file:
        return None if file.read(1) or may_be_empty else "is empty; use a file with documents"
