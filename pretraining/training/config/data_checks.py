"""Whether blocks and tokenizer belong together and make a run, and in which order the blocks stand."""

import logging
from pathlib import Path

from pretraining.data.mixture import Mixture
from pretraining.data.store.integrity import file_in_store
from pretraining.data.store.manifest import Manifest
from pretraining.data.tokenize.tokenizer import TOKENIZER_FILES, load_document_tokenizer
from pretraining.errors import UserError
from pretraining.planning.global_batch import GlobalBatch
from pretraining.system.files import sha256_of
from pretraining.training.data.order import WINDOW, BlockOrder, apportion

logger = logging.getLogger(__name__)


def make_order(mixture: Mixture, *, seed: int) -> BlockOrder:
    """The order of the training blocks of all stores.

    Raises:
        UserError: when a share is too small to be had.
    """
    shares = apportion([part.weight for part in mixture.parts])
    for part, share in zip(mixture.parts, shares, strict=True):
        if share == 0:
            raise UserError(
                f"--dataset {part.source}: its share of {part.weight:g} is less than one block of {WINDOW:,}; give it "
                "more, or leave it out"
            )
    return BlockOrder(tuple(mixture.num_blocks("train")), tuple(shares), seed)


def check_tokenizer(store: Path, manifest: Manifest) -> None:
    """Refuse a block store whose tokenizer/ is not the one that made its ids."""
    identity = manifest.origin.tokenizer
    path = file_in_store(store, "tokenizer/tokenizer.json", flag="--dataset")
    for name in TOKENIZER_FILES[1:]:
        if (path.parent / name).exists():
            file_in_store(store, f"tokenizer/{name}", flag="--dataset")
    if sha256_of(path) != identity.sha256:
        raise UserError(
            f"--dataset {store}: {path} is not the one that made the blocks (its SHA-256 is not that of the manifest); "
            "copy the whole folder again, or preprocess again"
        )
    add_bos = manifest.origin.token_rules.bos_token_id is not None
    tokenizer = load_document_tokenizer(str(path.parent), add_bos=add_bos, flag="--dataset")
    if tokenizer.canary()["ids"] != identity.canary_ids:
        raise UserError(
            f"--dataset {store}: this version of `tokenizers` gives other ids for the canary text of the manifest; "
            "install the version of requirements.lock, or preprocess again"
        )


def check_blocks(mixture: Mixture, batch: GlobalBatch, *, evaluates: bool) -> None:
    """Refuse stores without a block to train on, and steps larger than all of them; warn when validation is empty.

    Raises:
        UserError: with what to change.
    """
    counts = mixture.num_blocks("train")
    for part, count in zip(mixture.parts, counts, strict=True):
        if count == 0:
            raise UserError(
                f"--dataset {part.store.name}: train has no block of {batch.block_length:,} tokens; preprocess more "
                "text, or with a smaller --block_length"
            )
    num_blocks = sum(counts)
    if num_blocks < batch.blocks:
        per_micro_step = batch.micro_batch_blocks * batch.num_groups
        largest = num_blocks // per_micro_step * per_micro_step * batch.block_length
        smaller = f"{largest} or less" if largest else "less with fewer processes or --per_device_train_batch_size"
        raise UserError(
            f"--global_batch_tokens {batch.tokens}: a step of {batch.blocks:,} blocks is more than the "
            f"{num_blocks:,} of an epoch; give {smaller}, or preprocess more text"
        )
    if evaluates and sum(mixture.num_blocks("validation")) == 0:
        logger.warning(
            "--dataset %s: validation has no block, so there is no validation while training; preprocess with a "
            "smaller --block_length or another --split to have one",
            mixture.names,
        )
