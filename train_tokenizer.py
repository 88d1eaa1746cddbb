#!/usr/bin/env python3
"""Train a byte-level BPE tokenizer on JSONL text, so that no gated download is needed.

    python3 train_tokenizer.py --data_files news.jsonl --vocab_size 32000 --output_dir tokenizer

BOS, EOS and UNK are <s>, </s> and <unk> with the ids 1, 2 and 0, as in Llama. Every twentieth document is held out, and
the bytes that one token stands for on average are measured on up to 8 MB of those. Of more than 1 GB of text an even
sample is used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tokenizers import Tokenizer

from pretraining.cli.arguments.preprocess import TokenizerArguments
from pretraining.cli.logs import IN_ONE_LINE
from pretraining.cli.program import run_program
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.data.input.documents import Document, ReadingOptions
from pretraining.data.input.find import find_inputs
from pretraining.data.input.reading import read_documents
from pretraining.data.tokenize.train import count_tokens, save_tokenizer, train_byte_level_bpe
from pretraining.data.tokenize.training_texts import TrainingTexts
from pretraining.errors import UserError

logger = logging.getLogger("pretraining.train_tokenizer")


def main(argv: Sequence[str]) -> None:
    """Train on nineteen of twenty documents, save, measure on the twentieth."""
    (arguments,) = parse_recipe(__doc__ or "", [dataclass_group("Tokenizer", TokenizerArguments)], argv)
    files = find_inputs(arguments.data_files)
    if arguments.output_dir.exists():
        raise UserError(f"--output_dir {arguments.output_dir}: exists already; choose another folder")
    options = ReadingOptions(arguments.max_document_bytes, arguments.text_field)
    if not any(isinstance(line, Document) for line in read_documents(files, options)):
        raise UserError(
            f"--data_files: no line of them is a document with the field --text_field {arguments.text_field}"
        )
    texts = TrainingTexts(files, options)
    tokenizer = train_byte_level_bpe(iter(texts), vocab_size=arguments.vocab_size)
    save_tokenizer(tokenizer, arguments.output_dir)
    report(tokenizer, texts.held_out, arguments)


def report(tokenizer: Tokenizer, held_out: Sequence[str], arguments: TokenizerArguments) -> None:
    """Log the vocabulary, the compression on held-out text, and the next command."""
    size = tokenizer.get_vocab_size()
    if size < arguments.vocab_size:
        logger.warning("the text gives only %s tokens, not --vocab_size %s", f"{size:,}", f"{arguments.vocab_size:,}")
    num_tokens = count_tokens(tokenizer, held_out)
    if num_tokens:
        num_bytes = sum(len(text.encode("utf-8")) for text in held_out)
        logger.info("%.2f bytes per token on %s held-out tokens", num_bytes / num_tokens, f"{num_tokens:,}")
    logger.info("tokenizer of %s tokens: %s", f"{size:,}", arguments.output_dir)
    names = " ".join(arguments.data_files)
    logger.info(
        "next: python3 preprocess.py --tokenizer %s --data_files %s", arguments.output_dir, names, extra=IN_ONE_LINE
    )


if __name__ == "__main__":
    run_program(main)
