"""The specification of a block store, from the flags and files of a command, with the hashes of the files."""

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.cli.progress import map_with_progress
from pretraining.data.build.partial_store import INPUT_HASHES_NAME, partial_dir
from pretraining.data.build.working_files import read_record, write_record
from pretraining.data.input.files import InputFile
from pretraining.data.input.filters import CleaningRules
from pretraining.data.input.megatron_index import index_path
from pretraining.data.store.manifest import SourceFile, StoreSpec
from pretraining.data.tokenize.tokenizer import DocumentTokenizer
from pretraining.errors import UserError
from pretraining.system.files import sha256_of

logger = logging.getLogger(__name__)


Hashes = Mapping[str, str]  # the SHA-256 of a file by its path, size and modification time


def start_hashing(files: Sequence[InputFile], output_dir: Path) -> "Future[Hashes]":
    """Hash the input in another thread, while the tokenizer is loaded."""
    found: Future[Hashes] = Future()

    def work() -> None:
        try:
            known = _read_hashes(partial_dir(output_dir) / INPUT_HASHES_NAME)
            found.set_result(_hashes_of(_with_indexes(files), known))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=work, name="hash", daemon=True).start()  # an error elsewhere does not wait for it
    return found


def build_store_spec(
    arguments: PreprocessArguments, tokenizer: DocumentTokenizer, sources: list[SourceFile]
) -> StoreSpec:
    """Everything that determines the bytes of the store."""
    return StoreSpec(
        sources=sources,
        text_field=arguments.text_field,
        source_field=arguments.source_field,
        split_text_files=arguments.split_text_files,
        max_document_bytes=arguments.max_document_bytes,
        cleaning=CleaningRules(
            min_characters=arguments.min_characters,
            max_characters=arguments.max_characters,
            language_hook=arguments.language_hook,
            languages=tuple(arguments.languages or ()),
            exact_duplicates=arguments.exact_duplicates,
            near_duplicates=arguments.near_duplicates,
        ),
        tokenizer=tokenizer.identity(),
        token_rules=tokenizer.rules,
        block_length=arguments.block_length,
        packing=arguments.packing,
        split_weights=list(arguments.split_weights),
        seed=arguments.seed,
        num_slices=arguments.num_slices,
        tokens_per_shard=arguments.tokens_per_shard,
    )


def source_files(
    files: Sequence[InputFile], hashes: Hashes | None = None, *, hashes_in: Path | None
) -> list[SourceFile]:
    """The input files with their SHA-256, computed by 2 GB/s per core; the index of token ids is a separate one.

    Every member of a zip archive has the archive's hash. The hashes of files with the same size and modification time
    are taken from `hashes`, or from the file `hashes_in`, where they are then recorded.
    """
    files = _with_indexes(files)
    found = _hashes_of(files, _read_hashes(hashes_in) if hashes is None else hashes)
    if hashes_in is not None:
        write_record(hashes_in, dict(found))
    return [SourceFile(f.path, f.source, f.num_bytes, f.known_hash or found[_hash_key(f)]) for f in files]


def sources_before_hashing(files: Sequence[InputFile]) -> list[SourceFile]:
    """The input files; the hash of one that has none yet is empty."""
    return [SourceFile(f.path, f.source, f.num_bytes, f.known_hash or "") for f in _with_indexes(files)]


def _hashes_of(files: Sequence[InputFile], known: Hashes) -> Hashes:
    """The hash of each file whose hash is not known otherwise.

    Raises:
        UserError: when a file changes meanwhile, so that nobody knows what of it was hashed and what was read.
    """
    keys = {_hash_key(file): file for file in files if not file.known_hash}
    sized = [(key, Path(keys[key].location).stat().st_size) for key in sorted(keys.keys() - known.keys())]
    found = dict(map_with_progress(lambda key: sha256_of(Path(keys[key].location)), sized, "hashing the input"))
    for key in found:
        if _hash_key(keys[key]) != key:
            raise UserError(f"--data_files {keys[key].path}: changed during reading; run the same command again")
    return {key: known.get(key) or found[key] for key in keys}


def _with_indexes(files: Sequence[InputFile]) -> list[InputFile]:
    return [part for file in files for part in (file, *_index_of(file))]


def _index_of(file: InputFile) -> list[InputFile]:
    """The index of a file of token ids, if it has one; its name is then beside it."""
    path = index_path(Path(file.path))
    if file.format != "tokens" or not path.is_file():
        return []
    return [replace(file, path=str(path), location=str(path), num_bytes=path.stat().st_size)]


def _read_hashes(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        return read_record(path, dict, remedy="the input is hashed again")
    except FileNotFoundError:
        return {}
    except UserError as error:
        logger.warning("%s", error)
        return {}


def _hash_key(file: InputFile) -> str:
    status = Path(file.location).stat()
    return f"{file.location} {status.st_size} {status.st_mtime_ns}"
