"""Verify a block store against its manifest: paths, sizes, checksums, rows and ids."""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pretraining.cli.progress import map_with_progress
from pretraining.data.store.manifest import Manifest
from pretraining.data.store.shards import DOCUMENT_SCHEMA, Shard, block_schema, without_nulls
from pretraining.data.tokenize.reference import TOKENIZER_FILES
from pretraining.errors import UserError
from pretraining.system.files import sha256_of

ROWS_AT_ONCE = 256


def file_in_store(store: Path, path: str, *, flag: str) -> Path:
    """The file of this path in a block store.

    Raises:
        UserError: when it is missing, or a link out of the store. In the Hub's cache files are links into `blobs`,
            which is allowed.
    """
    file = store / path
    root = store.resolve()
    roots = (root, root.parents[1] / "blobs") if root.parent.name == "snapshots" else (root,)
    target = Path(os.path.realpath(file))  # Path.resolve raises for circular links
    if not any(target.is_relative_to(place) for place in roots):
        raise UserError(f"{flag} {store}: {file} is a link out of the data set, to {target}; put the file itself there")
    if not file.is_file():
        raise UserError(f"{flag} {store}: {file} is missing; {_remedy(flag)}")
    return file


def shard_file(store: Path, shard: Shard, *, flag: str) -> Path:
    """The file of a shard, which has the size of the manifest.

    Raises:
        UserError: when it has another size, is missing, or a link out of the store.
    """
    file = file_in_store(store, shard.path, flag=flag)
    found = file.stat().st_size
    if found != shard.num_bytes:
        raise UserError(
            f"{flag} {store}: {file} has {found:,} bytes, the manifest has {shard.num_bytes:,}; {_remedy(flag)}"
        )
    return file


def check_hashes(store: Path, manifest: Manifest, *, flag: str) -> None:
    """Raise `UserError` for the first shard whose SHA-256 is not that of the manifest."""
    expected = {shard_file(store, shard, flag=flag): shard.sha256 for shard in manifest.shards}
    for file, found in wrong_hashes(expected, "checking the data set"):
        raise UserError(
            f"{flag} {store}: {file} has the SHA-256 {found}, the manifest has {expected[file]}; {_remedy(flag)}"
        )


def wrong_hashes(expected: Mapping[Path, str], activity: str) -> Iterator[tuple[Path, str]]:
    """Files with another SHA-256 than expected, and the one found, or why the file cannot be read.

    Reads 1.5 GB/s per core.
    """
    sized = [(file, file.stat().st_size if file.is_file() else 0) for file in expected]
    for file, found in map_with_progress(_sha256_or_reason, sized, activity):
        if found != expected[file]:
            yield file, found


def _sha256_or_reason(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        return f"{error.strerror}"


def _remedy(flag: str) -> str:
    is_output = flag == "--output_dir"
    return "delete the folder and start again" if is_output else "copy the complete folder again, or preprocess again"


def content_problem(store: Path, manifest: Manifest, shard: Shard) -> str | None:
    """What is wrong with the rows of a shard whose checksum is right; None if nothing is."""
    is_blocks = shard not in manifest.documents
    origin = manifest.origin
    has_answers = origin.chat_template is not None
    expected = block_schema(origin.block_length, origin.dtype, has_answers=has_answers)
    try:
        parquet = pq.ParquetFile(store / shard.path)
        if parquet.metadata.num_rows != shard.num_rows:
            return f"{shard.path} has {parquet.metadata.num_rows:,} rows, the manifest has {shard.num_rows:,}"
        columns = (without_nulls(expected), expected) if is_blocks else (DOCUMENT_SCHEMA,)  # earlier stores had nulls
        if parquet.schema_arrow.remove_metadata() not in columns:
            return f"{shard.path} does not have the columns of a block store"
        return _id_problem(parquet, shard, origin.tokenizer.vocab_size) if is_blocks else None
    except (OSError, pa.ArrowException) as error:
        return f"{shard.path} cannot be read ({str(error).splitlines()[0]})"


def _id_problem(parquet: pq.ParquetFile, shard: Shard, vocab_size: int) -> str | None:
    first_row = 0
    for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=["input_ids"], use_threads=False):
        ids = np.from_dlpack(batch.column(0).flatten()).reshape(batch.num_rows, -1)
        if batch.num_rows and ids.max() >= vocab_size:
            row = int(np.flatnonzero(ids.max(axis=1) >= vocab_size)[0])
            place = f"{shard.path} row {first_row + row:,}"
            return f"{place} has the token id {ids[row].max():,}, the vocabulary has {vocab_size:,}"
        first_row += batch.num_rows
    return None


def store_problems(store: Path, manifest: Manifest) -> list[str]:
    """All problems of a block store: missing, damaged and extra files, wrong rows, columns and ids."""
    shards = {store / shard.path: shard for shard in manifest.shards}
    expected = {file: shard.sha256 for file, shard in shards.items()}
    expected[store / "tokenizer/tokenizer.json"] = manifest.origin.tokenizer.sha256
    problems = []
    for file in expected:
        try:
            file_in_store(store, file.relative_to(store).as_posix(), flag="--folder")
        except UserError as error:
            problems.append(str(error).removeprefix(f"--folder {store}: ").rpartition("; ")[0])
    there = {file: digest for file, digest in expected.items() if file.is_file()}
    damaged = dict(wrong_hashes(there, f"checking {store.name}"))
    problems += [f"{file} is damaged: its SHA-256 is {found}, not {expected[file]}" for file, found in damaged.items()]
    sound = [(shard, shard.num_bytes) for file, shard in shards.items() if file in there and file not in damaged]
    contents = map_with_progress(partial(content_problem, store, manifest), sound, f"reading {store.name}")
    problems += [problem for _, problem in contents if problem is not None]
    known = {*expected, *(store / "tokenizer" / name for name in TOKENIZER_FILES)}
    present = {file for name in ("data", "documents", "tokenizer") for file in (store / name).rglob("*")}
    extra = sorted(file for file in present - known if file.is_file())
    return problems + [f"{file} is extra: the manifest does not list it" for file in extra]
