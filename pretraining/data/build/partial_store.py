"""A partial block store: the folder NAME.partial, which is renamed when it is complete.

One process at a time writes it. It records its specification, so the same command resumes it and any other is rejected.
"""

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from pretraining.data.build.progress import PROGRESS_NAME, read_progress
from pretraining.data.build.working_files import INPUT_HASHES_NAME, partial_dir, read_record, write_record
from pretraining.data.input.files import InputFile
from pretraining.data.input.slices import FileRange, cut_slices
from pretraining.data.store.integrity import check_hashes
from pretraining.data.store.manifest import (
    MANIFEST_NAME,
    STORE_CONTENTS,
    Manifest,
    StoreSpec,
    differences,
    read_manifest,
)
from pretraining.errors import UserError
from pretraining.system.checked_json import from_json
from pretraining.system.files import TEMPORARY_SUFFIX
from pretraining.system.locks import lock_file

ORIGIN_NAME = "origin.json"
LOCK_NAME = "lock"
SLICES_NAME = "slices.json"
REFERENCE_ONLY_NAME = "reference_only"
DUPLICATES_NAME = "copies.npz"
NO_DOCUMENT_NAME = "no_document"  # a process found none and ended the run
FILES_OF_FLAGS = (ORIGIN_NAME, SLICES_NAME, REFERENCE_ONLY_NAME, DUPLICATES_NAME, NO_DOCUMENT_NAME)
WORKING_FILES = (INPUT_HASHES_NAME, *FILES_OF_FLAGS)
SLICES_DIR = "slices"
KEYS_DIR = "keys"
LAST_BLOCKS_DIR = "last_blocks"
WORKING_DIRS = (SLICES_DIR, KEYS_DIR, LAST_BLOCKS_DIR)
OWN_NAMES = {*WORKING_FILES, *WORKING_DIRS, *STORE_CONTENTS, LOCK_NAME}


def is_occupied(output_dir: Path) -> bool:
    """Whether `output_dir` has a block store.

    Raises:
        UserError: when no block store can be written there.
    """
    try:
        if output_dir.resolve() == Path.cwd():
            raise UserError(f"--output_dir {output_dir}: is the working directory; choose a folder inside it")
        if os.path.ismount(output_dir):
            raise UserError(
                f"--output_dir {output_dir}: is a mount point, which cannot be renamed; choose a folder inside it"
            )
        if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
            return False
        if not (output_dir / MANIFEST_NAME).is_file():
            raise UserError(f"--output_dir {output_dir}: has other files; choose another folder")
    except (OSError, RuntimeError) as error:  # RuntimeError: pathlib's, for circular links
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--output_dir {output_dir}: cannot be read ({reason}); choose another") from None
    return True


def finished_store(output_dir: Path, origin: StoreSpec) -> Manifest:
    """The manifest of the block store in `output_dir`, whose shards are hashed: 1.5 GB/s per core.

    Raises:
        UserError: when its origin differs or a shard is damaged; nothing is changed.
    """
    manifest = read_manifest(output_dir, flag="--output_dir")
    if manifest.origin != origin:
        raise UserError(
            f"--output_dir {output_dir}: has a block store of other input or flags "
            f"({'; '.join(differences(manifest.origin, origin))}); choose another folder or delete this one"
        )
    check_hashes(output_dir, manifest, flag="--output_dir")
    return manifest


class PartialStore:
    """NAME.partial, locked by this process."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir.resolve()
        self.folder = partial_dir(output_dir)
        self._is_disposable = not self.folder.exists()
        self._lock = _lock(self.folder)

    def __enter__(self) -> "PartialStore":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Unlock the folder; remove it if a failed run has finished nothing."""
        if kind is not None and self._is_disposable and not self._has_results():
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def discard(self) -> None:
        """Remove what was written, which would block other flags."""
        for name in WORKING_DIRS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in FILES_OF_FLAGS:
            (self.folder / name).unlink(missing_ok=True)
        self._is_disposable = True

    def _has_results(self) -> bool:
        """Whether a section, the keys of a slice, or everything is finished."""
        finished = [*self.folder.glob(f"{SLICES_DIR}/*/{PROGRESS_NAME}"), *self.folder.glob(f"{KEYS_DIR}/*.npz")]
        return self.is_assembled or bool(finished)

    def _has_no_document(self) -> bool:
        """Whether a process ended the last run since it found no document, and no slice has any."""
        made = map(read_progress, self.folder.glob(f"{SLICES_DIR}/*"))
        return (self.folder / NO_DOCUMENT_NAME).exists() and not any(one and one.num_documents for one in made)

    @property
    def is_new(self) -> bool:
        """Whether no run has recorded what it is made of."""
        has_origin = (self.folder / ORIGIN_NAME).exists() and not self._has_no_document()
        return not has_origin and not self.is_assembled and not is_occupied(self.output_dir)

    def claim(self, origin: StoreSpec) -> bool:
        """Record `origin`; whether an earlier run started this store.

        Raises:
            UserError: when it was started with other input or flags, or is damaged.
        """
        if is_occupied(self.output_dir):
            raise UserError(f"--output_dir {self.output_dir}: another run finished this store; run the command again")
        path = self.folder / ORIGIN_NAME
        if self._has_no_document():  # its flags were wrong, e.g. --text_field
            self.discard()
        if self.is_assembled:
            found = read_manifest(self.folder, flag="--output_dir").origin
        elif path.exists():
            remedy = f"delete {self.folder} and start again"
            found = read_record(path, lambda content: from_json(StoreSpec, content, ORIGIN_NAME), remedy=remedy)
        else:
            write_record(path, dataclasses.asdict(origin))
            return False
        if found != origin:
            raise UserError(
                f"--output_dir {self.output_dir}: an unfinished run with other input or flags is in {self.folder} "
                f"({'; '.join(differences(found, origin))}); use its flags to resume it, or delete that folder"
            )
        return True

    @property
    def is_assembled(self) -> bool:
        """Whether only publishing is left."""
        return (self.folder / MANIFEST_NAME).is_file()

    def slices(self, files: Sequence[InputFile], num_slices: int) -> list[list[FileRange]]:
        """The ranges of each slice, cut once."""
        path = self.folder / SLICES_NAME
        if not path.exists():
            cut = [[dataclasses.astuple(part) for part in ranges] for ranges in cut_slices(files, num_slices)]
            write_record(path, cut)
        remedy = "delete it and run the same command again"
        return read_record(path, lambda content: [[FileRange(*p) for p in ranges] for ranges in content], remedy=remedy)


def slice_dir(folder: Path, number: int) -> Path:
    """The folder of slice `number` of the partial store in `folder`."""
    return folder / SLICES_DIR / f"{number:05d}"


def _lock(folder: Path) -> int:
    """Create and lock `folder`; the system releases the lock when the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir() if path.suffix != TEMPORARY_SUFFIX}
        if names - OWN_NAMES or (names and not names & {LOCK_NAME, MANIFEST_NAME}):
            raise UserError(f"{folder}: is in the way of --output_dir; move it or choose another folder")
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror}); choose another folder") from None
    if not lock_file(descriptor, folder / LOCK_NAME):
        owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise UserError(
            f"--output_dir: another preprocess.py (process {owner}) is writing {folder}; wait for it, or choose "
            "another folder"
        )
    if os.fstat(descriptor).st_nlink == 0:  # its owner has just finished, and the folder was renamed
        os.close(descriptor)
        return _lock(folder)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
