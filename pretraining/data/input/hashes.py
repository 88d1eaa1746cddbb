"""The SHA-256 of the files of an input, computed in another thread from the start of a program on.

What is imported here is little: the hashing begins while the rest of the program is imported.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from pretraining.cli.progress import map_with_progress
from pretraining.data.build.working_files import INPUT_HASHES_NAME, partial_dir, read_record
from pretraining.data.input.files import InputFile
from pretraining.data.input.megatron_index import index_path
from pretraining.errors import UserError
from pretraining.system.files import sha256_of

logger = logging.getLogger(__name__)

Hashes = Mapping[str, str]  # the SHA-256 of a file by its path, size and modification time


def start_hashing(files: Sequence[InputFile], output_dir: Path) -> "Future[Hashes]":
    """Hash the input in another thread, while the program and the tokenizer are loaded."""
    found: Future[Hashes] = Future()

    def work() -> None:
        try:
            known = read_hashes(partial_dir(output_dir) / INPUT_HASHES_NAME)
            found.set_result(hashes_of(with_indexes(files), known))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=work, name="hash", daemon=True).start()  # an error elsewhere does not wait for it
    return found


def hashes_of(files: Sequence[InputFile], known: Hashes) -> Hashes:
    """The hash of each file whose hash is not known otherwise.

    Raises:
        UserError: when a file changes meanwhile, so that nobody knows what of it was hashed and what was read.
    """
    keys = {hash_key(file): file for file in files if not file.known_hash}
    sized = [(key, Path(keys[key].location).stat().st_size) for key in sorted(keys.keys() - known.keys())]
    found = dict(map_with_progress(lambda key: sha256_of(Path(keys[key].location)), sized, "hashing the input"))
    for key in found:
        if hash_key(keys[key]) != key:
            raise UserError(f"--data_files {keys[key].path}: changed during reading; run the same command again")
    return {key: known.get(key) or found[key] for key in keys}


def with_indexes(files: Sequence[InputFile]) -> list[InputFile]:
    """The files, each followed by its index if it has one."""
    return [part for file in files for part in (file, *_index_of(file))]


def _index_of(file: InputFile) -> list[InputFile]:
    """The index of a file of token ids, if it has one; its name is then beside it."""
    path = index_path(Path(file.path))
    if file.format != "tokens" or not path.is_file():
        return []
    return [replace(file, path=str(path), location=str(path), num_bytes=path.stat().st_size)]


def read_hashes(path: Path | None) -> dict[str, str]:
    """The hashes that an earlier run has recorded; none where they are damaged."""
    if path is None:
        return {}
    try:
        return read_record(path, dict, remedy="the input is hashed again")
    except FileNotFoundError:
        return {}
    except UserError as error:
        logger.warning("%s", error)
        return {}


def hash_key(file: InputFile) -> str:
    """What the hash of a file is found by, for as long as the file does not change."""
    status = Path(file.location).stat()
    return f"{file.location} {status.st_size} {status.st_mtime_ns}"
