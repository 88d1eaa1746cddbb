"""Read documents of token ids from the files of other tools, in bounded memory.

A .bin file of Megatron has an index beside it (`megatron_index`). Other .bin files are ids alone, uint16, in which the
EOS id divides documents: nanoGPT's (data/*/prepare.py). llm.c and modded-nanogpt put a header of 256 int32 before them.
"""

import io
import logging
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pretraining.data.input.documents import SHOWN_BYTES, RawLine, ReadingOptions
from pretraining.data.input.megatron_index import DocumentIndex, check_index, index_path, open_index
from pretraining.errors import UserError

OF_MEGATRON = ("_document", "_sentence")  # how the names end that its preprocess_data.py gives
HEADER_DTYPES = {20240520: "<u2", 20240801: "<u4"}  # magic numbers of llm.c: GPT-2's ids, Llama 3's
HEADER_BYTES = 1024
READ_BYTES = 4 << 20
SHOWN_IDS = 16
PROBED_BYTES, MIN_PROBED = 1 << 16, 64

logger = logging.getLogger(__name__)


def check_token_file(path: Path, *, is_compressed: bool) -> None:
    """Check that layout and sizes of a .bin file fit together.

    Raises:
        UserError: what is wrong with it, without its path.
    """
    if is_compressed:
        raise UserError("files of token ids are not read compressed; decompress it")
    if index_path(path).is_file():
        check_index(path)
        return
    if path.stem.endswith(OF_MEGATRON):
        raise UserError(f"its index {index_path(path).name} is missing; copy it beside this file")
    dtype, start = _flat_layout(path)
    if start == 0 and _has_wide_ids(path):
        raise UserError(f"has ids of 4 bytes, by its content; copy its index {index_path(path).name} beside this file")
    if (path.stat().st_size - start) % dtype.itemsize:
        raise UserError(f"is not a file of {dtype.itemsize}-byte token ids, by its size; pass the file of another tool")


def reading_of_flat_file(path: Path, eos_token_id: int) -> str | None:
    """How a .bin file that names no layout itself is read; None for one with an index or a header."""
    if index_path(path).is_file() or _flat_layout(path)[1]:
        return None
    return (
        f"{path}: no {index_path(path).name} beside it, read as nanoGPT's ids; documents end at EOS (id {eos_token_id})"
    )


def cut_token_file(path: Path, cuts: Sequence[int]) -> Iterator[tuple[int, int | None, int]]:
    """Start, end and first document (from 1) of the ranges between `cuts`, each moved to the next document.

    A file without index is one range.
    """
    start, first = 0, 0
    if index_path(path).is_file():
        index = open_index(path)
        for cut in cuts:
            document = index.first_from(cut)
            yield start, index.start_of(document), first + 1
            start, first = index.start_of(document), document
    yield start, None, first + 1


def read_token_documents(
    path: Path, raw: BinaryIO, options: ReadingOptions, *, offset: int, number: int, end: int | None
) -> Iterator[RawLine]:
    """The documents of a file that is open as `raw`, from `offset` on, where document `number` (from 0) begins.

    Their content is an array of ids as the file has them; one above `max_document_bytes` comes without.
    """
    end_id, max_bytes = options.eos_token_id, options.max_document_bytes
    stream = io.BufferedReader(raw, READ_BYTES)  # type: ignore[type-var]
    if index_path(path).is_file():
        yield from _indexed(open_index(path), stream, number, end, max_bytes)
        return
    dtype, start = _flat_layout(path)
    stream.seek(max(offset, start))
    if offset <= start and _begins_with(stream, end_id, dtype):  # llm.c puts EOS before a document
        stream.seek(start + dtype.itemsize)
    yield from _divided(path, stream, dtype, number, end_id, max_bytes)


def _indexed(index: DocumentIndex, stream: BinaryIO, number: int, end: int | None, max_bytes: int) -> Iterator[RawLine]:
    start = index.start_of(number)
    stream.seek(start)
    for document in range(number, index.num_documents):
        if end is not None and start >= end:
            return
        following = index.start_of(document + 1)
        size = following - start
        content = stream.read(min(size, max_bytes) // index.id_bytes * index.id_bytes)
        if size > max_bytes:
            stream.seek(following)
        elif len(content) < size:
            raise EOFError("the file ended before its last document")
        yield _line(document, start, size, np.frombuffer(content, index.dtype), max_bytes)
        start = following


def _divided(
    name: Path, stream: BinaryIO, dtype: np.dtype, number: int, end_id: int, max_bytes: int
) -> Iterator[RawLine]:
    """Documents that end with `end_id`; the last need not."""
    start, size = stream.tell(), 0
    parts: list[np.ndarray] = []
    while content := stream.read(READ_BYTES):
        ids = np.frombuffer(content, dtype)
        begin = 0
        for stop in np.append(np.flatnonzero(ids == end_id) + 1, len(ids)).tolist():
            part = ids[begin:stop]
            size += part.nbytes
            if size <= max_bytes or not parts:
                parts.append(part[: max_bytes // dtype.itemsize])
            if len(part) and part[-1] == end_id:
                yield _line(number, start, size, np.concatenate(parts), max_bytes)
                start, number, parts, size = start + size, number + 1, [], 0
            begin = stop
    if size:
        if number == 0:
            logger.warning(
                "%s: has no EOS (id %d), so it is one document; Megatron's files need their .idx", name, end_id
            )
        yield _line(number, start, size, np.concatenate(parts), max_bytes)


def _line(number: int, start: int, size: int, ids: np.ndarray, max_bytes: int) -> RawLine:
    head = f"ids {' '.join(map(str, ids[:SHOWN_IDS].tolist()))}".encode()[:SHOWN_BYTES]
    return RawLine(number + 1, start, number + 1, start + size, size, None if size > max_bytes else ids, head)


def _begins_with(stream: BinaryIO, end_id: int, dtype: np.dtype) -> bool:
    place = stream.tell()
    first = np.frombuffer(stream.read(dtype.itemsize), dtype)
    stream.seek(place)
    return len(first) > 0 and int(first[0]) == end_id


def _flat_layout(path: Path) -> tuple[np.dtype, int]:
    """The type of the ids in a file without index, and where they begin."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    magic, _, num_ids = struct.unpack("<3i", header[:12]) if len(header) == HEADER_BYTES else (0, 0, 0)
    if magic not in HEADER_DTYPES:
        return np.dtype("<u2"), 0
    dtype = np.dtype(HEADER_DTYPES[magic])
    found = (path.stat().st_size - HEADER_BYTES) / dtype.itemsize
    if found != num_ids:
        raise UserError(f"has {found:,.0f} token ids, and {num_ids:,} by its header; copy it again")
    return dtype, HEADER_BYTES


def _has_wide_ids(path: Path) -> bool:
    """Whether every second number of 2 bytes is the upper half of an id below 2^18; in text they vary."""
    with path.open("rb") as file:
        content = file.read(PROBED_BYTES)
    numbers = np.frombuffer(content[: len(content) // 4 * 4], "<u2")
    return len(numbers) >= MIN_PROBED and int(numbers[1::2].max()) < 4
