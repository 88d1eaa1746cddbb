"""A batch of documents as ids, with the columns of the table of documents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretraining.data.input.documents import Document, SkippedLine
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


def document_metadata(
    documents: Sequence[Document], sources: list[str], texts: Sequence[bytes], splits: np.ndarray
) -> DocumentMetadata:
    """The columns of documents with these texts, in UTF-8, and splits."""
    return DocumentMetadata(
        sources=sources,
        lines=np.array([document.line for document in documents], np.int64),
        byte_offsets=np.array([document.byte_offset for document in documents], np.int64),
        num_text_bytes=np.array(list(map(len, texts)), np.int64),
        splits=splits,
    )
