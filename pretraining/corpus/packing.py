"""Concatenate encoded documents and cut the stream into token blocks of one length.

Documents follow one another in input order; a block that ends inside a document goes on with it in the next block, so
only the tail of the whole stream fills no block. Each block knows where in it a document begins and which one it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """`block_length` ids, and the pieces of documents they come from.

    Piece i begins at `document_starts[i]` (the first at 0) and belongs to document `document_ids[i]`.
    `first_document_offset` counts the tokens of the first document that stand in earlier blocks.
    """

    input_ids: np.ndarray
    document_starts: list[int]
    document_ids: list[int]
    first_document_offset: int


class BlockPacker:
    """Packs the documents of one split.

    >>> packer = BlockPacker(block_length=3)
    >>> [block.input_ids.tolist() for block in packer.add(0, np.array([5, 6, 7, 2]))]
    [[5, 6, 7]]
    >>> [(block.input_ids.tolist(), block.document_ids) for block in packer.add(1, np.array([8, 2]))]
    [([2, 8, 2], [0, 1])]
    >>> packer.num_tail_tokens
    0
    """

    def __init__(self, *, block_length: int) -> None:
        self._block_length = block_length
        self._start_block()

    def _start_block(self) -> None:
        self._pieces: list[np.ndarray] = []
        self._starts: list[int] = []
        self._document_ids: list[int] = []
        self._first_offset = 0
        self._num_tokens = 0

    @property
    def num_tail_tokens(self) -> int:
        """Tokens added so far that fill no block."""
        return self._num_tokens

    def add(self, document_id: int, ids: np.ndarray) -> Iterator[TokenBlock]:
        """Append a document; yield each block that it completes."""
        offset = 0
        while offset < len(ids):
            if not self._pieces:
                self._first_offset = offset
            piece = ids[offset : offset + self._block_length - self._num_tokens]
            self._starts.append(self._num_tokens)
            self._document_ids.append(document_id)
            self._pieces.append(piece)
            self._num_tokens += len(piece)
            offset += len(piece)
            if self._num_tokens == self._block_length:
                yield TokenBlock(np.concatenate(self._pieces), self._starts, self._document_ids, self._first_offset)
                self._start_block()
