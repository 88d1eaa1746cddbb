"""The specification of a block store, from the flags and files of a command, with the hashes of the files."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.cli.progress import map_with_progress
from pretraining.data.build.working_files import read_record, write_record
from pretraining.data.input.files import InputFile
from pretraining.data.input.filters import CleaningRules
from pretraining.data.input.megatron_index import index_path
from pretraining.data.store.manifest import SourceFile, StoreSpec
from pretraining.data.tokenize.tokenizer import DocumentTokenizer
from pretraining.errors import UserError
from pretraining.system.files import sha256_of

logger = logging.getLogger(__name__)


def build_store_spec(
    arguments: PreprocessArguments, files: Sequence[InputFile], tokenizer: DocumentTokenizer, *, hashes_in: Path | None
) -> StoreSpec:
    """Everything that determines the bytes of the store, with the hash of each input file."""
    return StoreSpec(
        sources=source_files(files, hashes_in=hashes_in),
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


def source_files(files: Sequence[InputFile], *, hashes_in: Path | None) -> list[SourceFile]:
    """The input files with their SHA-256, computed by 2 GB/s per core; the index of token ids is a separate one.

    Every member of a zip archive has the archive's hash. A resumed run takes the hashes of files with the same size and
    modification time from `hashes_in`.
    """
    files = [part for file in files for part in (file, *_index_of(file))]
    known = _read_hashes(hashes_in) | {file.path: file.known_hash for file in files if file.known_hash}
    keys = [file.path if file.known_hash else _hash_key(Path(file.location)) for file in files]
    paths = {Path(file.location) for file, key in zip(files, keys, strict=True) if key not in known}
    missing = [(path, path.stat().st_size) for path in sorted(paths)]
    found = dict(map_with_progress(sha256_of, missing, "hashing the input"))
    hashes = [known[key] if key in known else found[Path(file.location)] for file, key in zip(files, keys, strict=True)]
    if hashes_in is not None:
        write_record(hashes_in, dict(zip(keys, hashes, strict=True)))
    return [SourceFile(f.path, f.source, f.num_bytes, sha256) for f, sha256 in zip(files, hashes, strict=True)]


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


def _hash_key(path: Path) -> str:
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}"
