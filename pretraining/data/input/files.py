"""One input file: its format and compression, the members of a zip archive, and what is wrong with a path."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretraining.cli.arguments.preprocess import HUB_ID
from pretraining.data.input.compressed import Compression, zip_members, zip_names
from pretraining.data.input.documents import has_utf8
from pretraining.data.input.megatron_index import index_path, is_index
from pretraining.data.input.token_files import check_token_file
from pretraining.errors import UserError

logger = logging.getLogger(__name__)

Format = Literal["jsonl", "parquet", "text", "tokens"]
FORMATS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".bin": "tokens",
}
MEMBER_FORMATS = ("jsonl", "text")  # of zip archives, in which nothing is found without reading what is before it
COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".xz": "xz", ".bz2": "bzip2"}
ARCHIVE = ".zip"
READ_SUFFIXES = (*FORMATS, ARCHIVE)
HUB_SCHEME = "hf://"


@dataclass(frozen=True)
class InputFile:
    """One file of the input.

    `source` is the name from --data_files NAME=FILES; None if its records or its file name decide. `path` is recorded;
    the file is read at `location`, which differs for files of the Hub, whose hash is known as well, and for the
    `member` of a zip archive, whose path begins with the archive's; its `num_bytes` are decompressed.
    """

    path: str
    source: str | None
    format: Format
    compression: Compression | None
    num_bytes: int
    location: str
    known_hash: str | None = None
    member: str | None = None

    @property
    def is_divisible(self) -> bool:
        """Whether slices can share it: it can be read from any line on, without what is before it."""
        return self.format in ("jsonl", "tokens") and not (self.compression or self.member or self.is_remote)

    @property
    def is_remote(self) -> bool:
        """Whether it is streamed from the Hub."""
        return self.location.startswith(HUB_SCHEME)

    @property
    def default_source(self) -> str:
        """The source of documents without one: the file's name up to its first dot."""
        return self.source or Path(self.path).name.split(".")[0]


def input_file(
    path: str,
    source: str | None,
    *,
    num_bytes: int,
    location: str,
    known_hash: str | None = None,
    member: str | None = None,
) -> InputFile:
    """A file with the format and compression of its name; JSON lines if the name has neither."""
    suffix, compression = suffixes_of(Path(path))
    return InputFile(path, source, FORMATS.get(suffix, "jsonl"), compression, num_bytes, location, known_hash, member)


def text_bytes(files: Sequence[InputFile]) -> int:
    """About how many bytes of text the files have; compressed ones have three times their size, as Parquet."""
    return sum(file.num_bytes * (3 if file.compression or file.format == "parquet" else 1) for file in files)


def files_at(path: Path, source: str | None, *, may_be_empty: bool) -> list[InputFile]:
    """The file at `path`, or the files in it if it is a zip archive.

    Raises:
        UserError: what is wrong with it, without its path.
    """
    archive = archive_of(path)
    if archive is not None:
        name, members = path.relative_to(archive).as_posix(), zip_members(archive)
        if name not in members:
            raise UserError("file not found in the archive; check the path")
        return [_member(archive, name, members[name], source)]
    problem = _file_problem(path, may_be_empty=may_be_empty)
    if problem is not None:
        raise UserError(problem)
    if path.suffix.lower() == ARCHIVE:
        return [_member(path, name, size, source) for name, size in _members_of(path).items()]
    file = input_file(str(path), source, num_bytes=path.stat().st_size, location=str(path))
    if file.format == "tokens":
        check_token_file(path, is_compressed=file.compression is not None)
    return [file]


def archive_of(path: Path) -> Path | None:
    """The zip archive that `path` leads into; None if it does not."""
    return next((place for place in path.parents if place.suffix.lower() == ARCHIVE and place.is_file()), None)


def _members_of(archive: Path) -> dict[str, int]:
    """The size of each file in the archive that can be read; the others are counted."""
    every = zip_members(archive)
    members = {name: size for name, size in every.items() if _is_read_in_archives(name)}
    if not members:
        raise UserError(f"the archive has no {', '.join(s for s, f in FORMATS.items() if f in MEMBER_FORMATS)} file")
    warn_of_others(archive, len(every) - len(members))
    return members


def _is_read_in_archives(name: str) -> bool:
    return FORMATS.get(suffixes_of(Path(name))[0]) in MEMBER_FORMATS


def _holds_text(archive: Path) -> bool:
    """Whether an archive in a folder is input; a damaged one is, so that it is reported."""
    try:
        names, is_encrypted = zip_names(archive)
    except UserError:
        return True
    holds_text = any(map(_is_read_in_archives, names))
    if holds_text and is_encrypted:
        logger.warning("%s: is encrypted, so it is not read; unzip it with its password to use its text", archive)
    return holds_text and not is_encrypted


def _member(archive: Path, name: str, num_bytes: int, source: str | None) -> InputFile:
    return input_file(f"{archive}/{name}", source, num_bytes=num_bytes, location=str(archive), member=name)


def find_file(path: str) -> InputFile:
    """The local file of this path, as `find_inputs` gives it.

    Raises:
        UserError: when there is none, or it cannot be read.
    """
    (file,) = files_at(Path(path), None, may_be_empty=False)
    return file


def warn_of_others(place: Path, num_others: int) -> None:
    """Log how many files of a folder or an archive are not input."""
    if num_others:
        logger.warning("%s: %s files of other formats in it are not read", place, f"{num_others:,}")


def is_read_in_folders(path: Path) -> bool:
    """Whether a file in a folder is input: of a known format, .bin files with an index, archives with text in them."""
    suffix = suffixes_of(path)[0]
    if path.suffix.lower() == ARCHIVE and path.is_file():
        return _holds_text(path)
    return index_path(path).exists() if FORMATS.get(suffix) == "tokens" else suffix in READ_SUFFIXES


def suffixes_of(path: Path) -> tuple[str, Compression | None]:
    """The suffix of a file's format, and its compression."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    inner = path.with_suffix("") if compression else path
    return inner.suffix.lower(), compression


def _file_problem(path: Path, *, may_be_empty: bool) -> str | None:
    if not path.exists():
        return f"file not found; {_remedy_for_missing(path)}"
    if not path.is_file():
        return "not a regular file; name the files in it"
    if not has_utf8(str(path)):
        return "the file name is not UTF-8; rename it"
    if is_index(path):
        return f"is the index of {path.with_suffix('.bin').name}; pass that file"
    with path.open("rb") as file:
        return None if file.read(1) or may_be_empty else "is empty; use a file with documents"


def _remedy_for_missing(path: Path) -> str:
    """Megatron's prefix of two files, and the name of a data set of the Hub, are mistaken for a file."""
    if Path(f"{path}.bin").is_file():
        return f"pass {path}.bin"
    suffix, compression = suffixes_of(path)
    if HUB_ID.fullmatch(str(path)) and compression is None and suffix not in READ_SUFFIXES:
        return f"check the path, or use {HUB_SCHEME}{path} for the data set of the Hub"
    return "check the path"
