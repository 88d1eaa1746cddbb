"""Hashes of the input files, which are part of a block store's specification."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pretraining.cli.progress import Progress
from pretraining.data.build.working_files import read_record, write_record
from pretraining.data.input.find import InputFile
from pretraining.errors import UserError
from pretraining.system.cores import usable_cores
from pretraining.system.files import sha256_of

logger = logging.getLogger(__name__)


def hash_inputs(files: Sequence[InputFile], remembered_in: Path | None) -> list[str]:
    """The SHA-256 of each file: 2 GB/s per core.

    A resumed run takes hashes from `remembered_in` for files with the same size and modification time.
    """
    known = _read(remembered_in) | {file.path: file.known_hash for file in files if file.known_hash}
    keys = [file.path if file.known_hash else _key(file) for file in files]
    with (
        Progress(sum(file.num_bytes for file, key in zip(files, keys, strict=True) if key not in known)) as progress,
        ThreadPoolExecutor(usable_cores()) as executor,
    ):
        futures = [
            None if key in known else executor.submit(sha256_of, Path(f.path))
            for f, key in zip(files, keys, strict=True)
        ]
        hashes = []
        for file, key, future in zip(files, keys, futures, strict=True):
            hashes.append(known[key] if future is None else future.result())
            if future is not None:
                progress.advance(file.num_bytes, "hashing the input")
    if remembered_in is not None:
        write_record(remembered_in, dict(zip(keys, hashes, strict=True)))
    return hashes


def changed_inputs(files: Sequence[InputFile], hashes: Sequence[str], remembered_in: Path) -> list[str]:
    """Paths of the files whose hashes differ from `hashes`; files with the same size and time are not read again."""
    now = hash_inputs(files, remembered_in)
    return [file.path for file, then, found in zip(files, hashes, now, strict=True) if then != found]


def _read(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        return read_record(path, dict, remedy="the input is hashed again")
    except FileNotFoundError:
        return {}
    except UserError as error:
        logger.warning("%s", error)
        return {}


def _key(file: InputFile) -> str:
    return f"{file.path} {file.num_bytes} {Path(file.path).stat().st_mtime_ns}"
