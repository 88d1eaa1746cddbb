"""Where ZeRO-3 keeps the numbers of each parameter, and which of them are whose with another number of processes.

A parameter is laid out flat, padded behind to a multiple of the processes, and cut into partitions of equal length, one
for each process. Parameters stand in sub-groups; a process keeps its partitions of a sub-group one after the other, as
one flat tensor, and each moment of the optimizer as another of the same layout. (deepspeed 0.19.8:
zero/partition_parameters.py `_partition_param`, zero/stage3.py `_create_fp16_sub_groups`.)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PartitionLayout:
    """Where every process keeps its partition of a parameter."""

    sub_group: int
    offset: int  # in the flat tensor
    length: int  # of a partition, padding and all
    num_numbers: int  # of the whole parameter, without padding


@dataclass(frozen=True)
class CopySpan:
    """Numbers that one process kept in a row, and where they belong now."""

    kept_by: int
    kept_at: int  # in the flat tensor of that process
    belongs_at: int  # in the flat tensor of the one that asks
    length: int


def partition_layouts(sub_groups: Sequence[Mapping[str, int]], *, num_processes: int) -> dict[str, PartitionLayout]:
    """Each parameter's place, from the numbers that the parameters of each sub-group have.

    >>> place_parameters([{"a": 5, "b": 4}], num_processes=2)["b"]
    Place(sub_group=0, offset=3, length=2, num_numbers=4)
    """
    places = {}
    for number, sizes in enumerate(sub_groups):
        offset = 0
        for name, size in sizes.items():
            length = -(-size // num_processes)
            places[name] = PartitionLayout(number, offset, length, size)
            offset += length
    return places


def overlapping_spans(process: int, place: PartitionLayout, kept: PartitionLayout) -> Iterator[CopySpan]:
    """What makes up the partition of `process` in `place`, of partitions that were `kept`; the rest of it is padding.

    >>> list(spans_of(1, Place(0, 10, 3, 5), Place(0, 20, 5, 5)))
    [Span(kept_by=0, kept_at=23, belongs_at=10, length=2)]
    """
    first = process * place.length
    end = min(first + place.length, place.num_numbers)
    position = first
    while position < end:
        kept_by, within = divmod(position, kept.length)
        length = min(kept.length - within, end - position)
        yield CopySpan(kept_by, kept.offset + within, place.offset + position - first, length)
        position += length
