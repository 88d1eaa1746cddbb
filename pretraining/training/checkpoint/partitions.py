"""The layout of ZeRO-3's partitions, and what to copy between the layouts of two numbers of processes.

A parameter is flattened, padded to a multiple of the number of processes, and cut into partitions of equal length, one
per process. Parameters are grouped into sub-groups; a process has its partitions of a sub-group one after the other, as
one flat tensor, and each moment of the optimizer as another of the same layout. (deepspeed 0.19.8:
zero/partition_parameters.py `_partition_param`, zero/stage3.py `_create_fp16_sub_groups`.)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PartitionLayout:
    """Where each process has its partition of a parameter."""

    sub_group: int
    offset: int  # in the flat tensor
    length: int  # of a partition, padding included
    num_weights: int  # of the parameter, without padding


@dataclass(frozen=True)
class CopySpan:
    """Consecutive weights to copy from the flat tensor of one process to that of another."""

    source_rank: int
    source_offset: int
    target_offset: int
    length: int


def partition_layouts(sub_groups: Sequence[Mapping[str, int]], *, num_processes: int) -> dict[str, PartitionLayout]:
    """Lay out the parameters of each sub-group, given by the number of weights of each.

    >>> partition_layouts([{"a": 5, "b": 4}], num_processes=2)["b"]
    PartitionLayout(sub_group=0, offset=3, length=2, num_weights=4)
    """
    layouts = {}
    for number, sizes in enumerate(sub_groups):
        offset = 0
        for name, size in sizes.items():
            length = -(-size // num_processes)
            layouts[name] = PartitionLayout(number, offset, length, size)
            offset += length
    return layouts


def overlapping_spans(rank: int, target: PartitionLayout, source: PartitionLayout) -> Iterator[CopySpan]:
    """Yield what fills the partition of `rank` in `target` from partitions in `source`; the rest of it is padding.

    >>> list(overlapping_spans(1, PartitionLayout(0, 10, 3, 5), PartitionLayout(0, 20, 5, 5)))
    [CopySpan(source_rank=0, source_offset=23, target_offset=10, length=2)]
    """
    first = rank * target.length
    end = min(first + target.length, target.num_weights)
    position = first
    while position < end:
        source_rank, within = divmod(position, source.length)
        length = min(source.length - within, end - position)
        yield CopySpan(source_rank, source.offset + within, target.offset + position - first, length)
        position += length
