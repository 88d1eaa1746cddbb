"""The specification of a block store, from the flags and files of a command, with the hashes of the files."""

from collections.abc import Sequence
from pathlib import Path

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.data.build.working_files import write_record
from pretraining.data.input.files import InputFile
from pretraining.data.input.filters import CleaningRules
from pretraining.data.input.hashes import Hashes, hash_key, hashes_of, read_hashes, with_indexes
from pretraining.data.store.manifest import SourceFile, StoreSpec
from pretraining.data.tokenize.tokenizer import DocumentTokenizer


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
    files = with_indexes(files)
    found = hashes_of(files, read_hashes(hashes_in) if hashes is None else hashes)
    if hashes_in is not None:
        write_record(hashes_in, dict(found))
    return [SourceFile(f.path, f.source, f.num_bytes, f.known_hash or found[hash_key(f)]) for f in files]


def sources_before_hashing(files: Sequence[InputFile]) -> list[SourceFile]:
    """The input files; the hash of one that has none yet is empty."""
    return [SourceFile(f.path, f.source, f.num_bytes, f.known_hash or "") for f in with_indexes(files)]
