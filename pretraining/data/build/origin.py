"""The specification of a block store, from the flags and files of a command."""

from collections.abc import Sequence
from pathlib import Path

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.data.input.filters import CleaningRules
from pretraining.data.input.find import InputFile
from pretraining.data.input.hashes import hash_inputs
from pretraining.data.store.manifest import SourceFile, StoreSpec, TokenizerIdentity
from pretraining.data.tokenize.tokenizer import DocumentTokenizer


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
        tokenizer=tokenizer_identity(tokenizer),
        token_rules=tokenizer.rules,
        block_length=arguments.block_length,
        packing=arguments.packing,
        split_weights=list(arguments.split_weights),
        seed=arguments.seed,
        num_slices=arguments.num_slices,
        tokens_per_shard=arguments.tokens_per_shard,
    )


def source_files(files: Sequence[InputFile], *, hashes_in: Path | None) -> list[SourceFile]:
    """The input files with their hashes, which a resumed run takes from `hashes_in`."""
    hashes = hash_inputs(files, hashes_in)
    return [SourceFile(f.path, f.source, f.num_bytes, sha256) for f, sha256 in zip(files, hashes, strict=True)]


def tokenizer_identity(tokenizer: DocumentTokenizer) -> TokenizerIdentity:
    """What readers of the blocks check their tokenizer by."""
    canary = tokenizer.canary()
    return TokenizerIdentity(tokenizer.name, tokenizer.sha256, tokenizer.vocab_size, canary["text"], canary["ids"])
