"""Where ZeRO has the weights of each parameter, and what to copy between two layouts.

Every rank has one or more flat buffers of fp32 weights, and each moment of the optimizer as another of the same layout.

Stage 3 flattens each parameter, pads it to a multiple of the number of ranks, and cuts it into partitions of equal
length, one per rank; a rank's partitions of a sub-group, one after the other, are a buffer. (deepspeed 0.19.8:
zero/partition_parameters.py `_partition_param`, zero/stage3.py `_create_fp16_sub_groups`.)

Stages 1 and 2 lay the parameters of an optimizer's group one after the other, pad the whole to a multiple of twice the
number of ranks, and cut it into one buffer per rank, in the middle of a parameter where it falls there.
(zero/stage_1_and_2.py `flatten_dense_tensors_aligned`, runtime/bf16_optimizer.py `_setup_for_real_optimizer`.)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

ALIGNMENT = 2  # of the buffers of stages 1 and 2, in weights: `nccl_start_alignment_factor`


class Piece(NamedTuple):
    """Consecutive weights of a parameter in a flat buffer of a rank."""

    rank: int
    buffer: int
    offset: int  # in the buffer
    first: int  # weight of the flattened parameter
    length: int


class CopySpan(NamedTuple):
    """Consecutive weights to copy from a buffer of one rank to a buffer of another."""

    source_rank: int
    source_offset: int
    target_offset: int
    length: int


@dataclass(frozen=True)
class ZeroLayout:
    """The pieces of each parameter, without padding and in order, and how long the buffers of each rank are."""

    pieces: Mapping[str, Sequence[Piece]]
    buffer_lengths: Sequence[int]  # padding included

    def buffer_of(self, name: str) -> int:
        """The number of the buffer that a parameter is in, the same on all ranks."""
        return self.pieces[name][0].buffer

    def own_pieces(self, rank: int) -> Iterator[tuple[str, Piece]]:
        """Yield the pieces of a rank with the names of their parameters."""
        for name, pieces in self.pieces.items():
            yield from ((name, piece) for piece in pieces if piece.rank == rank)

    def used_lengths(self, num_processes: int) -> list[list[int]]:
        """The lengths of the buffers of each rank, without the padding at their ends."""
        ends = [[0] * len(self.buffer_lengths) for _ in range(num_processes)]
        for pieces in self.pieces.values():
            for piece in pieces:
                own = ends[piece.rank]
                own[piece.buffer] = max(own[piece.buffer], piece.offset + piece.length)
        return ends


def zero_layout(stage: int, groups: Sequence[Mapping[str, int]], *, num_processes: int) -> ZeroLayout:
    """Lay out the parameters of each buffer, given by the number of weights of each.

    >>> zero_layout(3, [{"a": 5, "b": 4}], num_processes=2).pieces["b"][1]
    Piece(rank=1, buffer=0, offset=3, first=2, length=2)
    >>> zero_layout(1, [{"a": 5, "b": 4}], num_processes=2).pieces["b"][1]
    Piece(rank=1, buffer=0, offset=0, first=1, length=3)
    """
    cut = _cut_each if stage == 3 else _cut_all
    pieces: dict[str, list[Piece]] = {}
    lengths = []
    for buffer, sizes in enumerate(groups):
        of_buffer, length = cut(buffer, sizes, num_processes)
        pieces.update(of_buffer)
        lengths.append(length)
    return ZeroLayout(pieces, lengths)


def _cut_each(buffer: int, sizes: Mapping[str, int], num_processes: int) -> tuple[dict[str, list[Piece]], int]:
    """The pieces of stage 3, which pads and cuts each parameter, and the length of the buffer."""
    pieces, offset = {}, 0
    for name, size in sizes.items():
        length = -(-size // num_processes)
        firsts = enumerate(range(0, size, length))
        pieces[name] = [Piece(rank, buffer, offset, first, min(length, size - first)) for rank, first in firsts]
        offset += length
    return pieces, offset


def _cut_all(buffer: int, sizes: Mapping[str, int], num_processes: int) -> tuple[dict[str, list[Piece]], int]:
    """The pieces of stages 1 and 2, which pad and cut all parameters as one, and the length of the buffer."""
    length = ALIGNMENT * -(-sum(sizes.values()) // (ALIGNMENT * num_processes))
    pieces: dict[str, list[Piece]] = {}
    begin = 0  # of the parameter, counted over the buffers of all ranks
    for name, size in sizes.items():
        pieces[name] = []
        for rank in range(begin // length, (begin + size - 1) // length + 1):
            first, end = max(begin, rank * length), min(begin + size, (rank + 1) * length)
            pieces[name].append(Piece(rank, buffer, first - rank * length, first - begin, end - first))
        begin += size
    return pieces, length


def overlapping_spans(target: Piece, sources: Sequence[Piece]) -> Iterator[CopySpan]:
    """Yield what fills a piece, from the pieces of the same parameter in another layout.

    >>> list(overlapping_spans(Piece(1, 0, 10, 3, 2), [Piece(0, 0, 20, 0, 5)]))
    [CopySpan(source_rank=0, source_offset=23, target_offset=10, length=2)]
    """
    for source in sources:
        first = max(target.first, source.first)
        length = min(target.first + target.length, source.first + source.length) - first
        if length > 0:
            source_offset = source.offset + first - source.first
            yield CopySpan(source.rank, source_offset, target.offset + first - target.first, length)
