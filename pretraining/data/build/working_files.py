"""Working files of a partial store: JSON records and arrays with a checksum.

They may be damaged between two runs. A wrong count or position would give a wrong block store, so damage is an error
that names the file to delete.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pretraining.errors import UserError
from pretraining.system.files import atomic_path, write_atomically

INPUT_HASHES_NAME = "input_hashes.json"

T = TypeVar("T")


def partial_dir(output_dir: Path) -> Path:
    """The folder in which a block store is built, beside the target of a link."""
    output_dir = output_dir.resolve()
    return output_dir.with_name(output_dir.name + ".partial")


def write_record(path: Path, content: Any) -> None:
    """Write a JSON record atomically."""
    record = {"checksum": _checksum(content), "content": content}
    write_atomically(path, json.dumps(record, indent=1).encode())


def read_record(path: Path, convert: Callable[[Any], T], *, remedy: str) -> T:
    """Read what `write_record` wrote, converted by `convert`.

    Raises:
        FileNotFoundError: when the file does not exist.
        UserError: naming the file and the remedy, when it is damaged or of another version of this program.
    """
    record = path.read_bytes()
    try:
        record = json.loads(record)
        if record["checksum"] != _checksum(record["content"]):
            raise ValueError("its checksum does not match")
        return convert(record["content"])
    except Exception as error:
        raise _damaged(path, error, remedy) from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, checksum=_array_checksum(arrays), **arrays)


def read_arrays(path: Path, *, remedy: str) -> dict[str, np.ndarray]:
    """Read what `write_arrays` wrote.

    Raises:
        FileNotFoundError: when the file does not exist.
        UserError: naming the file and the remedy, when it is damaged.
    """
    with path.open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
            # zip's checksums are not enough: numpy may stop before a member's end, a damaged directory lacks members.
            if not np.array_equal(found.pop("checksum"), _array_checksum(found)):
                raise ValueError("its checksum does not match")
            return found
        except Exception as error:
            raise _damaged(path, error, remedy) from None


def _damaged(path: Path, error: Exception, remedy: str) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
    return UserError(f"{path}: is damaged, or of another version of this program ({reason}); {remedy}")


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _array_checksum(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape};".encode())
        digest.update(np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)
