"""A batch of documents as ids, with what the table of documents says of each."""

from dataclasses import dataclass

import numpy as np

from pretraining.data.input.documents import SkippedLine
from pretraining.data.input.reading import Position


@dataclass(frozen=True, slots=True)
class DocumentMetadata:
    """Columns of the table of documents; the numbers are int64."""

    sources: list[str]
    lines: np.ndarray
    byte_offsets: np.ndarray
    num_text_bytes: np.ndarray
    splits: np.ndarray


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """The documents of a batch with their ids (control tokens included), and its skipped lines."""

    path: str
    rows: DocumentMetadata
    ids: np.ndarray
    lengths: np.ndarray
    skipped: list[SkippedLine]
    end: Position
    num_file_bytes: int
    num_bytes: int  # of its lines, decompressed
