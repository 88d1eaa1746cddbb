"""The text of a document, read back from the input file it came from, and the proof that it is the text of its ids."""

from pathlib import Path

import numpy as np

from pretraining.data.input.documents import Document, JsonFields
from pretraining.data.input.find import find_inputs
from pretraining.data.input.formats import ReadingOptions
from pretraining.data.input.reading import parse_lines, read_batches
from pretraining.data.input.slices import FileRange
from pretraining.data.inspect.provenance import DocumentLocation, Piece
from pretraining.data.store.manifest import StoreSpec
from pretraining.data.tokenize.tokenizer import DocumentTokenizer
from pretraining.errors import UserError


def read_source_text(place: DocumentLocation, origin: StoreSpec) -> str:
    """The text at the document's line; a compressed file is decompressed up to there.

    Raises:
        UserError: when the file is not there, or no longer the one that was preprocessed.
    """
    path = Path(place.file)
    if not path.is_file():
        raise UserError(f"{path}: is not there (the path is as preprocess.py was given it); the text is in the blocks")
    num_bytes = next(source.num_bytes for source in origin.sources if source.path == place.file)
    if path.stat().st_size != num_bytes:
        raise UserError(f"{path}: has changed, from {num_bytes:,} bytes to {path.stat().st_size:,}")
    fields = JsonFields(origin.text_field, origin.source_field)
    options = ReadingOptions(fields, origin.max_document_bytes, origin.split_text_files)
    rest = [FileRange(file_number=0, start=place.byte_offset, end=None, first_line=place.line)]
    batch = next(read_batches(find_inputs([place.file]), rest, None, options), None)
    _, parsed = next(parse_lines(batch, fields)) if batch else (None, None)
    if not isinstance(parsed, Document):
        raise UserError(f"{path}:{place.line}: has changed, there is no document any more")
    return parsed.text


def has_ids(
    text: str, tokenizer: DocumentTokenizer, *, piece: Piece, block_ids: np.ndarray, num_document_tokens: int
) -> bool:
    """Whether `text` has as many tokens as its document, and those of the piece are where `block_ids` has them."""
    ids = tokenizer.encode([text]).ids
    expected = ids[piece.num_tokens_before : piece.num_tokens_before + piece.num_tokens]
    found = block_ids[piece.start : piece.start + piece.num_tokens]
    return len(ids) == num_document_tokens and np.array_equal(expected, found)
