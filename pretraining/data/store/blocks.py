"""Token blocks in memory: their ids, and where in them documents begin."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Blocks:
    """Token blocks: `input_ids` of shape [blocks, block_length], and the pieces in each.

    Piece i begins in its block at `document_starts[i]`; block b has the pieces from `piece_bounds[b]` to
    `piece_bounds[b + 1]`. The last `num_padding_tokens[b]` tokens of block b are padding.
    """

    input_ids: np.ndarray
    piece_bounds: np.ndarray
    document_starts: np.ndarray
    document_ids: np.ndarray
    document_offsets: np.ndarray
    num_padding_tokens: np.ndarray


def no_blocks(block_length: int, dtype: str) -> Blocks:
    """No blocks of this length."""
    none = np.empty(0, np.int64)
    return Blocks(np.empty((0, block_length), dtype), np.zeros(1, np.int64), none, none, none, none)


def divide_blocks(blocks: Blocks, max_tokens: int) -> Iterator[Blocks]:
    """The blocks in parts of at most this size, or one block each if blocks are larger."""
    num_blocks, block_length = blocks.input_ids.shape
    step = max(1, max_tokens // block_length)
    for first in range(0, num_blocks, step):
        bounds = blocks.piece_bounds[first : first + step + 1]
        pieces = slice(bounds[0], bounds[-1])
        yield Blocks(
            input_ids=blocks.input_ids[first : first + step],
            piece_bounds=bounds - bounds[0],
            document_starts=blocks.document_starts[pieces],
            document_ids=blocks.document_ids[pieces],
            document_offsets=blocks.document_offsets[pieces],
            num_padding_tokens=blocks.num_padding_tokens[first : first + step],
        )


def join_blocks(parts: Sequence[Blocks]) -> Blocks:
    """Concatenate blocks."""
    if len(parts) == 1:
        return parts[0]
    num_pieces = np.cumsum([0, *(part.piece_bounds[-1] for part in parts)])
    bounds = [part.piece_bounds[1:] + before for part, before in zip(parts, num_pieces, strict=False)]
    names = ("input_ids", "document_starts", "document_ids", "document_offsets", "num_padding_tokens")
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Blocks(piece_bounds=np.concatenate([[0], *bounds]), **columns)
