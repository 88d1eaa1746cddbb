"""What a block store is made from, as the flags and files of a command say it."""

from collections.abc import Sequence
from pathlib import Path

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.data.input.documents import JsonFields
from pretraining.data.input.filters import CleaningRules
from pretraining.data.input.find import InputFile
from pretraining.data.input.formats import ReadingOptions
from pretraining.data.input.hashes import hash_inputs
from pretraining.data.store.manifest import SourceFile, StoreSpec, TokenizerIdentity
from pretraining.data.tokenize.tokenizer import DocumentTokenizer


def build_store_spec(
    arguments: PreprocessArguments, files: Sequence[InputFile], tokenizer: DocumentTokenizer, *, hashes_in: Path | None
) -> StoreSpec:
    """All that decides the bytes of the store, with the hash of each input file."""
    canary = tokenizer.canary()
    hashes = hash_inputs(files, hashes_in)
    return StoreSpec(
        sources=[
            SourceFile(file.path, file.source, file.num_bytes, sha256)
            for file, sha256 in zip(files, hashes, strict=True)
        ],
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
        tokenizer=TokenizerIdentity(
            tokenizer.name, tokenizer.sha256, tokenizer.vocab_size, canary["text"], canary["ids"]
        ),
        token_rules=tokenizer.rules,
        block_length=arguments.block_length,
        packing=arguments.packing,
        split_weights=list(arguments.split_weights),
        seed=arguments.seed,
        num_slices=arguments.num_slices,
        tokens_per_shard=arguments.tokens_per_shard,
    )


def reading_options(origin: StoreSpec) -> ReadingOptions:
    """How the files of `origin` are read."""
    return ReadingOptions(
        fields=JsonFields(origin.text_field, origin.source_field),
        max_document_bytes=origin.max_document_bytes,
        split_text_files=origin.split_text_files,
    )
