"""`--dataset synthetic`: a block store of random ids, for measuring speed without data, written once into the cache.

The modules of preprocess.py write it from random characters, each of which is a token, so a run on it uses the same
code as any other: shards, order, loader, tokenizer. The same flags give the same bytes, so it can be resumed.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.data.build.partial_store import is_occupied
from pretraining.data.build.pipeline import make_block_store
from pretraining.data.build.ranks import Ranks
from pretraining.data.input.find import find_inputs
from pretraining.data.input.hashes import start_hashing
from pretraining.data.mixture import BlockStore, Mixture, WeightedStore
from pretraining.data.store.manifest import read_manifest
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.data.tokenize.train import SPECIAL_TOKENS, save_tokenizer
from pretraining.system.files import cache_dir
from pretraining.system.locks import wait_for_lock

NUM_TOKENS = 1 << 21  # 4 MB of ids, in two seconds
MIN_BLOCKS = 64
TOKENS_PER_DOCUMENT = 1000
FIRST_CHARACTER = 0x10000  # above those with a special meaning for JSON or tokenizers
SEED = 0

logger = logging.getLogger(__name__)


def synthetic_mixture(*, block_length: int, vocab_size: int) -> Mixture:
    """Open the synthetic store; the first process of a machine writes it, the others wait."""
    folder = cache_dir() / "pretraining" / f"synthetic-{block_length}x{vocab_size}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with wait_for_lock(folder.with_suffix(".lock")):
        if not is_occupied(folder):
            _make(folder, block_length=block_length, vocab_size=vocab_size)
    store = BlockStore("synthetic", folder, read_manifest(folder, flag="--dataset"))
    return Mixture((WeightedStore(None, 1.0, store),))


def _make(folder: Path, *, block_length: int, vocab_size: int) -> None:
    logger.info("writing synthetic blocks to %s", folder)
    data_file, tokenizer_dir = folder.with_suffix(".jsonl"), folder.with_suffix(".tokenizer")
    if not tokenizer_dir.exists():
        save_tokenizer(_character_tokenizer(vocab_size), tokenizer_dir)
    with data_file.open("w", encoding="utf-8") as file:
        num_documents = max(NUM_TOKENS, MIN_BLOCKS * block_length) // TOKENS_PER_DOCUMENT
        file.writelines(_documents(num_documents, vocab_size))
    arguments = PreprocessArguments(
        data_files=[str(data_file)],
        tokenizer=str(tokenizer_dir),
        output_dir=folder,
        block_length=block_length,
        split="1,0,0",  # evaluations would only take time
    )
    files = find_inputs(arguments.data_files, streaming=False, output_dir=folder)
    tokenizer = load_document_tokenizer(arguments.tokenizer, add_bos=False)
    hashes = start_hashing(files, folder)
    make_block_store(arguments, files, tokenizer, Ranks(num_slices=1, alone=True), hashes)
    data_file.unlink()


def _character_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer whose ids are single characters, so that no text is the name of a control token."""
    words = [*SPECIAL_TOKENS.values(), *map(_character, range(len(SPECIAL_TOKENS), vocab_size))]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _character(index: int) -> str:
    return chr(FIRST_CHARACTER + index)


def _documents(num_documents: int, vocab_size: int) -> Iterator[str]:
    """JSON lines of uniformly random ids, so that the loss stays ln(vocab_size)."""
    generator = np.random.default_rng(SEED)
    for _ in range(num_documents):
        ids = generator.integers(len(SPECIAL_TOKENS), vocab_size, TOKENS_PER_DOCUMENT)
        yield json.dumps({"text": "".join(map(_character, ids.tolist()))}, ensure_ascii=False) + "\n"
