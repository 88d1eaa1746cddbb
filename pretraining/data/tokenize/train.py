"""Train a byte-level BPE tokenizer and save it so that `AutoTokenizer` opens it."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pretraining.errors import UserError

SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # ids 0, 1, 2 as in Llama
ENCODED_TOGETHER = 64  # texts; a token takes 100 bytes until it is counted


def train_byte_level_bpe(texts: Iterator[str], *, vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens; all 256 bytes are among them, so no text is unknown to it."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    # Digits one by one, as Llama does, so that numbers of any length are made of the same ten tokens.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> int:
    """How many tokens the texts have together; encodes them on all cores, a few at a time."""
    batches = [texts[start : start + ENCODED_TOGETHER] for start in range(0, len(texts), ENCODED_TOGETHER)]
    encoded = (tokenizer.encode_batch_fast(list(batch), add_special_tokens=False) for batch in batches)
    return sum(len(encoding) for batch in encoded for encoding in batch)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json.

    Raises:
        UserError: when `folder` cannot be written.
    """
    config = {**SPECIAL_TOKENS, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    try:
        folder.mkdir(parents=True)
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output_dir {folder}: cannot be written ({error.strerror}); choose another") from None
