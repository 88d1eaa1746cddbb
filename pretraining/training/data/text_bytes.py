"""The bytes of text behind each token, for the loss in bits per byte."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pretraining.data.tokenize.token_bytes import TokenBytes
from pretraining.data.tokenize.tokenizer import TokenRules
from pretraining.errors import UserError
from pretraining.training.data.dataset import MixedBlocks

logger = logging.getLogger(__name__)


class TextBytes:
    """How many bytes of text each token of a block or document stands for."""

    def __init__(self, tokenizer_dir: Path, canary_ids: Sequence[int], rules: TokenRules) -> None:
        table = TokenBytes(tokenizer_dir)
        table.check(canary_ids)
        self._lengths = table.lengths()
        # The decoder takes away the space that the encoder put before a document's first token.
        self._place_of_space = int(rules.bos_token_id is not None) if table.drops_first_space else None

    def of(self, blocks: MixedBlocks, index: int, input_ids: np.ndarray) -> np.ndarray:
        """Those of the tokens of block `index`, int64 of shape [block_length]."""
        num_bytes = self._lengths[input_ids]
        if self._place_of_space is not None:
            part, block = blocks.locate(index)
            num_bytes[blocks.part(part).first_text_tokens(block, place=self._place_of_space)] -= 1
        return num_bytes

    def of_document(self, ids: np.ndarray) -> np.ndarray:
        """Those of the tokens of a whole document, int64 of shape [tokens]."""
        num_bytes = self._lengths[ids]
        if self._place_of_space is not None:
            num_bytes[self._place_of_space] -= 1
        return num_bytes


def open_text_bytes(tokenizer_dir: Path, canary_ids: Sequence[int], rules: TokenRules) -> TextBytes | None:
    """Bytes of the tokens; None, with a line of the log, for a tokenizer whose tokens have none of their own.

    `canary_ids` are those that the tokenizer gives for a text with hard places.
    """
    try:
        return TextBytes(tokenizer_dir, canary_ids, rules)
    except UserError as error:
        logger.warning("no bits per byte: %s", error)
        return None
