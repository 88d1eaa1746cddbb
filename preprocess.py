#!/usr/bin/env python3
"""Turn JSONL text into fixed-length token blocks for pretrain.py.

    python3 preprocess.py                                        # the bundled sample corpus, into blocks/
    python3 preprocess.py --data_files news.jsonl --tokenizer meta-llama/Llama-2-7b-hf --output_dir blocks

Each document is encoded, followed by EOS, concatenated with the next, and cut into blocks of --block_length tokens.
Whole documents go to train, validation or test. Lines that cannot be read are counted and listed in skipped.jsonl.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

from pretraining.cli.arguments import PreprocessArguments
from pretraining.cli.errors import UserError, run_program
from pretraining.cli.progress import Progress
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.corpus.block_store import BlockStoreWriter, finished_store
from pretraining.corpus.documents import Document, JsonFields, SkippedLine, check_data_files, read_documents
from pretraining.corpus.manifest import Manifest, Origin, SourceFile, TokenizerIdentity
from pretraining.corpus.shards import sha256_of
from pretraining.corpus.splits import SplitAssigner
from pretraining.corpus.tokenization import DocumentTokenizer, load_document_tokenizer

logger = logging.getLogger("pretraining.preprocess")

LINES_PER_BATCH = 1000  # enough work for every core, and little text in memory


def main(argv: Sequence[str]) -> None:
    """Make a block store, unless the very same one is there already."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Preprocessing", PreprocessArguments)], argv)
    check_data_files(arguments.data_files)
    tokenizer = load_document_tokenizer(arguments.tokenizer, add_bos=arguments.add_bos)
    origin = describe_origin(arguments, tokenizer)
    manifest = finished_store(arguments.output_dir, origin)
    if manifest is not None:
        logger.info("%s holds this block store already; nothing to do", arguments.output_dir)
    else:
        manifest = make_block_store(arguments, tokenizer, origin)
    report(arguments.output_dir, manifest)


def describe_origin(arguments: PreprocessArguments, tokenizer: DocumentTokenizer) -> Origin:
    """All that decides the bytes of the store, with the hash of each input file."""
    canary = tokenizer.canary()
    return Origin(
        sources=[SourceFile(str(path), path.stat().st_size, sha256_of(path)) for path in arguments.data_files],
        text_field=arguments.text_field,
        source_field=arguments.source_field,
        tokenizer=TokenizerIdentity(
            tokenizer.name, tokenizer.sha256, tokenizer.vocab_size, canary["text"], canary["ids"]
        ),
        token_rules=tokenizer.rules,
        block_length=arguments.block_length,
        split_weights=list(arguments.split_weights),
        seed=arguments.seed,
    )


def make_block_store(arguments: PreprocessArguments, tokenizer: DocumentTokenizer, origin: Origin) -> Manifest:
    """Read, encode, split, pack and write every document."""
    splits = SplitAssigner(arguments.split_weights, seed=arguments.seed)
    fields = JsonFields(arguments.text_field, arguments.source_field)
    lines = read_documents(arguments.data_files, fields)
    total_bytes = sum(source.num_bytes for source in origin.sources)
    with (
        BlockStoreWriter(arguments.output_dir, origin, tokenizer_dir=tokenizer.folder) as store,
        Progress(total_bytes) as progress,
    ):
        while batch := list(itertools.islice(lines, LINES_PER_BATCH)):
            add_lines(store, batch, tokenizer, splits)
            if store.num_documents == 0:  # most likely a wrong --text_field: do not read terabytes to say so
                check_skipped(store, arguments.max_skipped_fraction)
            speed = store.num_tokens / progress.elapsed_seconds
            figures = f"{store.num_documents:,} documents, {speed:,.0f} tokens/s"
            progress.advance(sum(line.line_bytes for line in batch), figures)
        check_skipped(store, arguments.max_skipped_fraction)
        if store.num_documents == 0:
            raise UserError("--data_files: no line of them is a document; give JSON lines with a text field")
        return store.finish()


def add_lines(
    store: BlockStoreWriter,
    lines: list[Document | SkippedLine],
    tokenizer: DocumentTokenizer,
    splits: SplitAssigner,
) -> None:
    """Encode the documents among `lines` and store all lines in their order."""
    encoded = iter(tokenizer.encode([line.text for line in lines if isinstance(line, Document)]))
    for line in lines:
        if isinstance(line, Document):
            store.add_document(line, splits.split_of(line.text), next(encoded))
        else:
            store.add_skipped(line)


def check_skipped(store: BlockStoreWriter, max_skipped_fraction: float) -> None:
    """Refuse input of which too much cannot be read; blank lines do no harm and do not count."""
    num_unreadable = sum(count for reason, count in store.skipped_counts.items() if reason != "blank_line")
    num_lines = store.num_documents + num_unreadable
    first = store.first_unreadable
    if first is not None and num_unreadable > max_skipped_fraction * num_lines:
        raise UserError(
            f"{first.file}:{first.line}: {first.reason.replace('_', ' ')} ({first.first_bytes!r}); "
            f"{num_unreadable:,} of {num_lines:,} lines like it are more than --max_skipped_fraction "
            f"{max_skipped_fraction}; mend them, name the right --text_field, or allow more"
        )


def report(output_dir: Path, manifest: Manifest) -> None:
    """Say what was made, where it lies, and what to do next."""
    for name, split in manifest.splits.items():
        logger.info(
            "%-10s %9s documents %13s tokens %9s blocks, %s tokens in the tail",
            name,
            f"{split.num_documents:,}",
            f"{split.num_tokens:,}",
            f"{split.num_blocks:,}",
            f"{split.num_tail_tokens:,}",
        )
        if split.num_documents and not split.num_blocks:
            logger.warning(
                "%s has %s tokens, not enough for one block of %s; give a smaller --block_length or another --split",
                name,
                f"{split.num_tokens:,}",
                f"{manifest.origin.block_length:,}",
            )
    for reason, count in manifest.skipped_lines.items():
        logger.info("skipped    %9s lines: %s (listed in skipped.jsonl)", f"{count:,}", reason.replace("_", " "))
    logger.info("block store: %s", output_dir)
    logger.info("next: deepspeed --num_gpus=N pretrain.py --dataset %s", output_dir)


if __name__ == "__main__":
    run_program(main)
