"""The index of Megatron's token files: NAME.bin has the ids of all documents, NAME.idx where each begins.

The layout is that of megatron/core/datasets/indexed_dataset.py of Megatron-LM, which Megatron-DeepSpeed has as well: 9
bytes MMIDIDX, version 1 and a code of the ids' type, the numbers of sequences and of document bounds, then three
arrays: length of each sequence (int32), its byte offset in NAME.bin (int64), and the number of the first sequence of
each document (int64).
"""

import bisect
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretraining.errors import UserError

INDEX_MAGIC = b"MMIDIDX\x00\x00"
INDEX_HEADER = struct.Struct("<9sQBQQ")
INDEX_VERSION = 1
INDEX_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats
CHECKED_AT_ONCE = 1 << 20  # entries


@dataclass(frozen=True, slots=True)
class DocumentIndex:
    """The arrays of a Megatron index, memory-mapped.

    Document i is sequences `documents[i]` up to `documents[i + 1]`; `num_bytes` are those of the .bin file.
    """

    dtype: np.dtype
    lengths: np.ndarray
    offsets: np.ndarray
    documents: np.ndarray
    num_bytes: int

    @property
    def num_documents(self) -> int:
        """Documents in the file."""
        return len(self.documents) - 1

    @property
    def id_bytes(self) -> int:
        """Size of an id."""
        return int(self.dtype.itemsize)

    def start_of(self, document: int) -> int:
        """The byte offset of a document, counted from 0; of the number after the last the end of the file."""
        sequence = int(self.documents[document])
        return int(self.offsets[sequence]) if sequence < len(self.offsets) else self.num_bytes

    def first_from(self, offset: int) -> int:
        """The first document that begins at `offset` or after it."""
        return bisect.bisect_left(range(self.num_documents), offset, key=self.start_of)


def index_path(path: Path) -> Path:
    """Where the index of a .bin file is, if it has one."""
    return path.with_suffix(".idx")


def is_index(path: Path) -> bool:
    """Whether the file is the index of a .bin file beside it."""
    return path.suffix == ".idx" and path.with_suffix(".bin").is_file()


def open_index(path: Path) -> DocumentIndex:
    """The index of a .bin file; whose arrays are as long as its header requires."""
    place = index_path(path)
    size = place.stat().st_size
    with place.open("rb") as file:
        header = file.read(INDEX_HEADER.size)
    if len(header) < INDEX_HEADER.size or not header.startswith(INDEX_MAGIC):
        raise UserError(f"{place.name} is not an index of Megatron; copy it again, or rename it")
    _, version, code, num_sequences, num_bounds = INDEX_HEADER.unpack(header)
    if version != INDEX_VERSION or code not in INDEX_DTYPES:
        raise UserError(
            f"{place.name} has version {version} and type {code}, which are not read; make both files again"
        )
    expected = INDEX_HEADER.size + 12 * num_sequences + 8 * num_bounds
    if size < expected or num_bounds < 2:  # multimodal ones have one byte per sequence more
        raise UserError(f"{place.name} has {size:,} bytes, and {expected:,} by its header; copy it again")
    content = np.memmap(place, np.uint8, "r")
    lengths_end = INDEX_HEADER.size + 4 * num_sequences
    offsets_end = lengths_end + 8 * num_sequences
    return DocumentIndex(
        np.dtype(INDEX_DTYPES[code]),
        content[INDEX_HEADER.size : lengths_end].view("<i4"),
        content[lengths_end:offsets_end].view("<i8"),
        content[offsets_end:expected].view("<i8"),
        path.stat().st_size,
    )


def check_index(path: Path) -> None:
    """Check that sequences and documents follow each other without gaps, to the end of the .bin file."""
    index = open_index(path)
    offset = 0
    for first in range(0, len(index.lengths), CHECKED_AT_ONCE):
        sizes = index.lengths[first : first + CHECKED_AT_ONCE].astype(np.int64) * index.id_bytes
        ends = offset + np.cumsum(sizes)
        if sizes.min() < 0 or not np.array_equal(index.offsets[first : first + CHECKED_AT_ONCE], ends - sizes):
            raise UserError(f"{index_path(path).name} is damaged, its sequences have gaps; copy it again")
        offset = int(ends[-1])
    bounds = index.documents
    steps = (np.diff(bounds[first : first + CHECKED_AT_ONCE + 1]) for first in range(0, len(bounds), CHECKED_AT_ONCE))
    if bounds[0] != 0 or bounds[-1] != len(index.lengths) or any((step < 0).any() for step in steps):
        raise UserError(f"{index_path(path).name} is damaged, its documents have gaps; copy it again")
    if offset != index.num_bytes:
        raise UserError(f"has {index.num_bytes:,} bytes, and {offset:,} by {index_path(path).name}; copy both again")
