"""complete.json, the last file of a checkpoint: without it the others do not count.

It lists every file with its size and hash, and is written when all of them are on the disk. The hash is XXH3 of 128
bits: it finds damage, not forgery, at 5 GB/s per core where SHA-256 does 1.5, and a checkpoint has 12 bytes per
parameter. `finite` is true where weights and optimizer state were found finite; earlier checkpoints do not have it.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pretraining.system.checked_json import parse_json
from pretraining.system.files import fsync, write_atomically, xxh3_of

COMPLETE_NAME = "complete.json"
FORMAT_VERSION = 1
SMALL_BYTES = 1 << 20  # hashing such files takes no time, and some are read before the others are verified


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint, by its path in the folder."""

    path: str
    num_bytes: int
    xxh3_128: str


def record_file(folder: Path, path: Path) -> FileRecord:
    """Wait until a file is on the disk, and return its size and hash."""
    fsync(path)
    return FileRecord(path.relative_to(folder).as_posix(), path.stat().st_size, xxh3_of(path))


def write_manifest(
    folder: Path, files: Sequence[FileRecord], *, step: int, num_processes: int, finite: bool | None = None
) -> None:
    """Write complete.json from the records of all files. `finite` is what is known of the weights."""
    content = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "num_processes": num_processes,
        **({} if finite is None else {"finite": finite}),
        "completed_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "num_bytes": sum(file.num_bytes for file in files),
        "files": [asdict(file) for file in sorted(files, key=lambda file: file.path)],
    }
    for place in {folder, *((folder / file.path).parent for file in files)}:
        fsync(place)
    write_atomically(folder / COMPLETE_NAME, (json.dumps(content, indent=1) + "\n").encode())
    fsync(folder.parent)


def read_complete(folder: Path) -> dict[str, Any]:
    """The content of complete.json.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is not as `write_manifest` writes it, lists no file, or one outside of the folder.
    """
    content = parse_json((folder / COMPLETE_NAME).read_bytes())
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"not of version {FORMAT_VERSION}")
    numbers, files = [content.get(name) for name in ("step", "num_processes", "num_bytes")], content.get("files")
    if not all(map(_is_count, numbers)) or not isinstance(files, list) or not files or not all(map(_is_record, files)):
        raise ValueError("it does not list the files of a checkpoint")
    paths = [PurePosixPath(file["path"]) for file in files]
    outside = [str(path) for path in paths if path.is_absolute() or ".." in path.parts]
    if outside:
        raise ValueError(f"it lists {outside[0]}, which is not in the folder")
    return content


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_record(file: Any) -> bool:
    return (
        isinstance(file, dict)
        and isinstance(file.get("path"), str)
        and _is_count(file.get("num_bytes"))
        and isinstance(file.get("xxh3_128"), str)
    )


def incomplete_reason(folder: Path) -> str | None:
    """Why a checkpoint does not count, None if it does: all files in their sizes, the small ones with their hashes."""
    if not folder.is_dir():
        return "no such folder"
    files = listed_files(folder)
    if isinstance(files, str):
        return files
    problems = (file_problem(folder, file, max_hashed_bytes=SMALL_BYTES) for file in files)
    return next((problem for problem in problems if problem is not None), None)


def listed_files(folder: Path) -> list[Mapping[str, Any]] | str:
    """The files that complete.json lists, or what is wrong with it."""
    try:
        return list(read_complete(folder)["files"])
    except FileNotFoundError:
        return f"{COMPLETE_NAME} is missing, the save did not finish"
    except (OSError, ValueError) as error:
        return f"{COMPLETE_NAME} cannot be read ({error})"


def is_known_finite(folder: Path) -> bool:
    """Whether a checkpoint records that its weights and optimizer state are finite; earlier ones do not."""
    try:
        return read_complete(folder).get("finite") is True
    except (OSError, ValueError):
        return False


def corruption_reason(folder: Path, *, part: int = 0, num_parts: int = 1) -> str | None:
    """The first file whose content is not what was written, None when all are sound; reads every byte.

    `part` of `num_parts` verifies only this part of the files, so that processes can share the work.
    """
    by_size = sorted(read_complete(folder)["files"], key=lambda file: (-file["num_bytes"], file["path"]))
    problems = (file_problem(folder, file) for file in by_size[part::num_parts])
    return next((problem for problem in problems if problem is not None), None)


def file_problem(folder: Path, file: Mapping[str, Any], *, max_hashed_bytes: float = float("inf")) -> str | None:
    """What is wrong with one file of complete.json, None if nothing; larger files are not hashed."""
    path = folder / file["path"]
    try:
        if not path.is_file():
            return f"{file['path']} is missing"
        if not path.resolve().is_relative_to(folder.resolve()):
            return f"{file['path']} is a link out of the folder"
        found = path.stat().st_size
        if found != file["num_bytes"]:
            return f"{file['path']} is damaged: it has {found:,} bytes, not {file['num_bytes']:,}"
        if found < max_hashed_bytes and (checksum := xxh3_of(path)) != file["xxh3_128"]:
            return f"{file['path']} is damaged: its XXH3 is {checksum}, not {file['xxh3_128']}"
    except OSError as error:
        return f"{file['path']} cannot be read ({error.strerror})"
    return None
