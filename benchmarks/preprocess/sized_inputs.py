"""Inputs of any size from one file: its texts repeated, each with a different number in front."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from benchmarks.results import MEGABYTE


@dataclass(frozen=True)
class SizedInput:
    """A file to preprocess."""

    title: str
    num_documents: int
    text_bytes: int


def sized_inputs(data_file: Path, megabytes: Sequence[int], path: Path) -> Iterator[SizedInput]:
    """Write one input after the other to `path`."""
    for size in megabytes:
        num_documents = text_bytes = 0
        with path.open("wb") as file:
            for text in _endless_texts(data_file):
                num_documents += 1
                text_bytes += len(text.encode())
                file.write(orjson.dumps({"text": text}) + b"\n")
                if file.tell() >= size * MEGABYTE:
                    break
        yield SizedInput(f"{size:,} MB", num_documents, text_bytes)


def huge_line(data_file: Path, megabytes: int, path: Path) -> SizedInput:
    """Write a single document to `path`."""
    parts, text_bytes = [], 0
    for text in _endless_texts(data_file):
        parts.append(text)
        text_bytes += len(text.encode()) + 1
        if text_bytes >= megabytes * MEGABYTE:
            break
    path.write_bytes(orjson.dumps({"text": "\n".join(parts)}) + b"\n")
    return SizedInput(f"one line of {megabytes:,} MB", 1, text_bytes - 1)


def texts_of(data_file: Path) -> Iterator[str]:
    """The texts of a file."""
    with data_file.open("rb") as lines:
        yield from (orjson.loads(line)["text"] for line in lines)


def _endless_texts(data_file: Path) -> Iterator[str]:
    numbers = itertools.count(1)
    while True:
        for text in texts_of(data_file):
            yield f"{next(numbers)} {text}"
