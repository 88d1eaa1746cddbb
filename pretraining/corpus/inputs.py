"""Which files are the input: paths, folders and globs, with or without the name of a source, to a list of files."""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.cli.errors import UserError

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

    `source` is the name the user gave it, None where its records or its name decide. `path` is how the file is called
    in what is written down; it is read at `location`, which differs for files of the Hub, whose hash is known as well.
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
        """Whether it is read from the Hub as it comes."""
        return self.location.startswith(HUB_SCHEME)

    @property
    def is_divisible(self) -> bool:
        """Whether reading can begin at any line without reading what is before it."""
        return self.format == "jsonl" and self.compression is None and not self.is_remote

    @property
    def default_source(self) -> str:
        """The source of a document that names none: the file's name up to its first dot."""
        return self.source or Path(self.path).name.split(".")[0]


def find_inputs(data_files: Sequence[str], *, streaming: bool = False) -> list[InputFile]:
    """The files that `--data_files` names, in its order; those of a folder or glob by their names.

    Those of the Hub are downloaded, or read as they come when `streaming`.

    Raises:
        UserError: all at once, for words that name no file, files that are empty, unreadable or named twice.
    """
    problems: list[str] = []
    files = [file for word in data_files for file in _files_of(word, streaming, problems)]
    for path, count in Counter(file.path for file in files).items():
        if count > 1:
            problems.append(f"--data_files {path}: is named twice; name it once")
    if problems:
        raise UserError(*problems)
    return files


def input_file(
    path: str, source: str | None, *, num_bytes: int, location: str, known_hash: str | None = None
) -> InputFile:
    """A file with the format and compression that its name tells; JSON lines when it tells none."""
    suffix, compression = _suffixes(Path(path))
    return InputFile(path, source, FORMATS.get(suffix, "jsonl"), compression, num_bytes, location, known_hash)


def _files_of(word: str, streaming: bool, problems: list[str]) -> list[InputFile]:
    match = NAMED_SOURCE.fullmatch(word)
    source, pattern = (None, word) if match is None or Path(word).exists() else match.groups()
    if pattern.startswith(HUB_SCHEME):
        from pretraining.corpus.hub_inputs import hub_files  # it imports `datasets`, a second that only this needs

        return hub_files(pattern, source, streaming=streaming)
    files = []
    for path in _paths_of(pattern, problems):
        problem = _file_problem(path, may_be_empty=str(path) != pattern)
        if problem:
            problems.append(f"--data_files {path}: {problem}")
        else:
            files.append(input_file(str(path), source, num_bytes=path.stat().st_size, location=str(path)))
    return files


def _paths_of(pattern: str, problems: list[str]) -> list[Path]:
    path = Path(pattern)
    if path.is_dir():
        found = sorted(child for child in path.rglob("*") if child.is_file() and _suffixes(child)[0] in FORMATS)
        if not found:
            problems.append(f"--data_files {path}: the folder has no {', '.join(FORMATS)} file in it")
        return found
    if path.exists() or not glob.has_magic(pattern):
        return [path]
    found = sorted(Path(match) for match in glob.glob(pattern, recursive=True) if Path(match).is_file())  # noqa: PTH207
    if not found:
        problems.append(f"--data_files {pattern}: no file is named like this; check the pattern")
    return found


def _suffixes(path: Path) -> tuple[str, Compression | None]:
    """The suffix that tells a file's format, and its compression."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    inner = path.with_suffix("") if compression else path
    return inner.suffix.lower(), compression


def _file_problem(path: Path, *, may_be_empty: bool) -> str | None:
    if not path.exists():
        return "there is no such file; check the path"
    if not path.is_file():
        return "is not a file; name the files in it"
    try:
        with path.open("rb") as file:
            return None if file.read(1) or may_be_empty else "is empty; give a file with documents in it"
    except OSError as error:
        return f"cannot be read ({error.strerror}); check its permissions"
