#!/usr/bin/env python3
"""Turn text into fixed-length token blocks for pretrain.py.

    python3 preprocess.py                                        # the bundled sample corpus, into blocks/
    python3 preprocess.py --data_files news.jsonl --tokenizer meta-llama/Llama-2-7b-hf --output_dir blocks
    python3 preprocess.py --data_files 'news=a/*.jsonl.gz' wiki=b.parquet notes/ --output_dir blocks
    python3 preprocess.py --push_to_hub USER/NAME                # and onto the Hub, private by default
    python3 preprocess.py --data_files wiki=hf://USER/NAME:train --streaming --output_dir blocks
    mpirun -n 16 --hostfile hosts python3 preprocess.py --num_slices 64 ...

Each document is encoded, followed by EOS, and packed into blocks of --block_length tokens: concatenated with the next
and cut where a block ends, or placed whole where it fits best (--packing).
Whole documents go to train, validation or test. Lines that cannot be read are counted, and listed in
skipped.jsonl: the first 10,000 of each file and reason.
After any interruption the same command resumes, with the same bytes as result.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.cli.logs import IN_ONE_LINE, counted
from pretraining.cli.program import importing_libraries, run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.system.cores import use_one_blas_thread

if TYPE_CHECKING:
    from pretraining.data.build.ranks import Ranks
    from pretraining.data.input.files import InputFile
    from pretraining.data.input.hashes import Hashes
    from pretraining.data.store.manifest import Manifest
    from pretraining.data.tokenize.tokenizer import DocumentTokenizer

logger = logging.getLogger("pretraining.preprocess")


def main(argv: Sequence[str]) -> None:
    """Write a block store, unless the same one exists already; the input is hashed while libraries are imported."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Preprocessing", PreprocessArguments)], argv)
    use_one_blas_thread()
    with importing_libraries():
        from pretraining.data.build.ranks import Ranks
        from pretraining.data.input.find import find_inputs
        from pretraining.data.input.hashes import start_hashing

        files = find_inputs(
            arguments.data_files, streaming=arguments.streaming, output_dir=arguments.output_dir, takes_tokens=True
        )
        ranks = Ranks(num_slices=arguments.num_slices)
        hashes = start_hashing(files if ranks.is_first else [], arguments.output_dir)
        tokenizer = open_tokenizer(arguments, files)
    if ranks.is_first and arguments.push_to_hub is not None:
        from pretraining.data.hub.upload import check_token  # the Hub's client takes 0.2 s, half of a start

        check_token(arguments.push_to_hub)
    manifest = make_store(arguments, files, tokenizer, ranks, hashes)
    report(arguments.output_dir, manifest)
    if ranks.is_first:
        publish(arguments, manifest)
    tokenizer.wait_until_compiled()


def open_tokenizer(arguments: PreprocessArguments, files: list[InputFile]) -> DocumentTokenizer:
    """Open the tokenizer, if input of token ids fits the flags."""
    from pretraining.data.build.checks import check_token_inputs
    from pretraining.data.input.files import text_bytes
    from pretraining.data.tokenize.tokenizer import load_document_tokenizer

    check_token_inputs(arguments, files)
    return load_document_tokenizer(
        arguments.tokenizer,
        add_bos=arguments.add_bos,
        backend=arguments.tokenizer_backend,
        num_bytes=text_bytes(files),
    )


def make_store(
    arguments: PreprocessArguments,
    files: list[InputFile],
    tokenizer: DocumentTokenizer,
    ranks: Ranks,
    hashes: Future[Hashes],
) -> Manifest:
    """Write the block store, unless an earlier run has finished it in the output folder."""
    from pretraining.data.build.pipeline import earlier_store, make_block_store

    manifest = ranks.from_first(lambda: earlier_store(arguments, files, tokenizer, hashes))
    if manifest is None:
        return make_block_store(arguments, files, tokenizer, ranks, hashes)
    logger.info("%s holds this block store already; nothing to do", arguments.output_dir)
    return manifest


def publish(arguments: PreprocessArguments, manifest: Manifest) -> None:
    """Add the license to the card and push the block store to the Hub, if requested."""
    if arguments.license is not None:
        from pretraining.data.build.card import write_card

        write_card(manifest, arguments.output_dir, license_name=arguments.license)
    if arguments.push_to_hub is not None:
        from pretraining.data.hub.upload import push_block_store

        push_block_store(arguments.output_dir, arguments.push_to_hub, private=arguments.hub_private)


def report(output_dir: Path, manifest: Manifest) -> None:
    """Log the splits, what was skipped, the output folder and the next command."""
    for line in split_lines(manifest):
        logger.info(line)
    for weight, (name, split) in zip(manifest.origin.split_weights, manifest.splits.items(), strict=True):
        if weight and not split.num_blocks:
            logger.warning(
                "%s has %s tokens, not enough for one block of %s; use more text, a smaller --block_length or another "
                "--split",
                name,
                f"{split.num_tokens:,}",
                f"{manifest.origin.block_length:,}",
            )
    for reason, count in manifest.skipped_lines.items():
        logger.info("skipped %s: %s (see skipped.jsonl)", counted(count, "line"), reason.replace("_", " "))
    logger.info("block store: %s", output_dir, extra=IN_ONE_LINE)
    logger.info("next: deepspeed --num_gpus=N pretrain.py --dataset %s", output_dir, extra=IN_ONE_LINE)


def split_lines(manifest: Manifest) -> list[str]:
    """Documents, tokens and blocks of each split, in columns."""
    is_padded = manifest.origin.packing == "best_fit"
    rows = [
        [
            counted(split.num_documents, "document"),
            counted(split.num_tokens, "token"),
            counted(split.num_blocks, "block"),
            counted(split.num_padding_tokens if is_padded else split.num_tail_tokens, "token")
            + (" of padding" if is_padded else " in the tail"),
        ]
        for split in manifest.splits.values()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        f"{name:<10}  {'  '.join(map(str.rjust, row, widths))}" for name, row in zip(manifest.splits, rows, strict=True)
    ]


if __name__ == "__main__":
    run_program(main)
