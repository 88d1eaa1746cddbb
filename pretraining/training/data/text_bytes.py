"""Bytes of text per token, for the loss in bits per byte."""

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
    """The number of bytes of text of each token of a block or document."""

    def __init__(self, tokenizer_dir: Path, canary_ids: Sequence[int], rules: TokenRules) -> None:
        table = TokenBytes(tokenizer_dir)
        table.check(canary_ids)
        self._lengths = table.lengths()
        # The decoder removes the space that the encoder put before a document's first token.
        self._number_of_space = int(rules.bos_token_id is not None) if table.drops_first_space else None

    def of(self, blocks: MixedBlocks, index: int, input_ids: np.ndarray) -> np.ndarray:
        """Count the bytes of the tokens of block `index`, int64 of shape [block_length]."""
        num_bytes = self._lengths[input_ids]
        if self._number_of_space is not None:
            part, block = blocks.locate(index)
            num_bytes[blocks.part(part).positions_of_token(block, self._number_of_space)] -= 1
        return num_bytes

    def of_document(self, ids: np.ndarray) -> np.ndarray:
        """Count the bytes of the tokens of a document, int64 of shape [tokens]."""
        num_bytes = self._lengths[ids]
        if self._number_of_space is not None:
            num_bytes[self._number_of_space] -= 1
        return num_bytes


def open_text_bytes(tokenizer_dir: Path, canary_ids: Sequence[int], rules: TokenRules) -> TextBytes | None:
    """Open the table of bytes per token; None, with a warning, for a tokenizer whose tokens have no fixed bytes.

    `canary_ids` are the recorded ids of a text with difficult characters, by which the table is checked.
    """
    try:
        return TextBytes(tokenizer_dir, canary_ids, rules)
    except UserError as error:
        logger.warning("no bits per byte: %s", error)
        return None
