"""Parse lines of the input: each becomes a `Document`, or a `SkippedLine` with its place and reason.

A line is a JSON line, a row of a Parquet file, the text of a plain text file (or of one of its paragraphs), or a
document of a file of token ids.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson

from pretraining.errors import UserError

UnreadableReason = Literal[
    "invalid_utf8",
    "byte_order_mark",
    "not_json",
    "not_an_object",
    "no_text_field",
    "text_is_null",
    "text_not_a_string",
    "lone_surrogate",
    "empty_text",
    "too_large",
]
CleaningReason = Literal["too_short", "too_long", "other_language", "duplicate", "near_duplicate"]
SkipReason = Literal["blank_line"] | UnreadableReason | CleaningReason
REMOVED = ("too_short", "too_long", "other_language", "duplicate", "near_duplicate")  # documents that filters remove
CLEANED = ("blank_line", *REMOVED)  # not counted as unreadable
LINE_MEMORY_BYTES = 500
SHOWN_BYTES = 80  # of a skipped line
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ExpandsTooFarError(Exception):
    """A file that would take more memory to read than text does."""


class RawLine(NamedTuple):  # made in 0.4 us; a frozen dataclass takes 2
    """A line as it was read: number (from 1), byte offset, number and offset after it, size, and content.

    Consecutive blank lines are one, with the content of the first. The content is bytes of JSON or text, a row of a
    Parquet file, token ids, or None if the line is too large; `head`, where it is set, is what a message shows of it.
    Offsets count decompressed bytes, in Parquet rows. `is_item`: it is an item of a JSON list, and no line.
    """

    number: int
    byte_offset: int
    end_line: int
    end_offset: int
    num_bytes: int
    content: bytes | Mapping[str, Any] | np.ndarray | None
    head: bytes = b""
    is_item: bool = False

    @property
    def memory_bytes(self) -> int:
        """Approximate size in memory, which millions of empty lines have, too."""
        return LINE_MEMORY_BYTES + (0 if self.content is None else self.num_bytes)


@dataclass(slots=True)
class Document:
    """One text record and its place: line (from 1) and byte offset of the line; `utf8` is the text in UTF-8.

    One of a file of token ids has them as `ids`, and no text.
    """

    text: str
    source: str | None
    line: int
    byte_offset: int
    ids: np.ndarray | None = None
    utf8: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SkippedLine:
    """A line that is not a document, or a removed one; `copy_of` is the place of a duplicate's original.

    `num_lines` consecutive blank lines are one.
    """

    line: int
    reason: SkipReason
    first_bytes: str
    copy_of: str | None = None
    num_lines: int = 1


@dataclass(frozen=True, slots=True)
class ReadingOptions:
    """The largest line, the fields that hold a document's text and, where present, its source, and paragraphs.

    `a.b` is field b of object a. `split_text_files`: blank lines divide plain text into documents. `whole_records`:
    records have other fields than those two, and a JSON file may be a list. Of Parquet only the columns of complete
    groups of `record_fields` are read, and of `more_fields`; all columns where no group is complete. The tokenizer's
    `vocab_size` and `eos_token_id` are needed for files of token ids alone.
    """

    max_document_bytes: int
    text_field: str = "text"
    source_field: str = "source"
    split_text_files: bool = False
    whole_records: bool = False
    record_fields: tuple[tuple[str, ...], ...] = ()
    more_fields: tuple[str, ...] = ()
    vocab_size: int = 0
    eos_token_id: int = 0


def parse_json_line(raw: RawLine, options: ReadingOptions) -> Document | SkippedLine:
    """Parse a JSON line."""
    content = raw.content
    assert isinstance(content, bytes)
    if raw.number == 1:
        content = content.removeprefix(BYTE_ORDER_MARK)
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError:
        if not content or content.isspace():
            return replace(skipped(raw, "blank_line"), num_lines=raw.end_line - raw.number + 1)
        if content.startswith(BYTE_ORDER_MARK):
            return skipped(raw, "byte_order_mark")
        try:
            # The standard library reads what Python and pandas write, NaN and lone surrogates included.
            record = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            return skipped(raw, "invalid_utf8" if isinstance(error, UnicodeDecodeError) else "not_json")
    return _document_of(raw, record, options) if isinstance(record, dict) else skipped(raw, "not_an_object")


def parse_row(raw: RawLine, options: ReadingOptions) -> Document | SkippedLine:
    """Parse a row of a Parquet file; bytes are a row that is not UTF-8."""
    if isinstance(raw.content, bytes):
        return skipped(raw, "invalid_utf8")
    assert isinstance(raw.content, Mapping)
    return _document_of(raw, raw.content, options)


def parse_text(raw: RawLine, options: ReadingOptions) -> Document | SkippedLine:
    """Parse plain text, which is one document."""
    del options  # plain text has no fields
    assert isinstance(raw.content, bytes)
    try:
        text = raw.content.removeprefix(BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError:
        return skipped(raw, "invalid_utf8")
    return _checked(raw, text, None)


def parse_ids(raw: RawLine, options: ReadingOptions) -> Document | SkippedLine:
    """Take the ids of a document without the EOS at its end, which every document gets.

    Raises:
        UserError: when the tokenizer does not have one of them, so another one made them.
    """
    ids = raw.content
    assert isinstance(ids, np.ndarray)
    ids = ids[:-1] if len(ids) and ids[-1] == options.eos_token_id else ids
    if not len(ids):
        return skipped(raw, "empty_text")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= options.vocab_size:
        raise UserError(
            f"document {raw.number:,} has the token id {highest if lowest >= 0 else lowest}, and the tokenizer 0 to "
            f"{options.vocab_size - 1:,}; use the --tokenizer that made the file"
        )
    return Document("", None, raw.number, raw.byte_offset, ids)


def skipped(raw: RawLine, reason: SkipReason, *, copy_of: str | None = None) -> SkippedLine:
    """`raw` as a skipped line."""
    shown = (raw.head or _bytes_of(raw.content))[:SHOWN_BYTES].decode("utf-8", errors="backslashreplace").rstrip("\r\n")
    return SkippedLine(raw.number, reason, shown, copy_of)


def _bytes_of(content: bytes | Mapping[str, Any] | np.ndarray | None) -> bytes:
    if isinstance(content, bytes):
        return content[:SHOWN_BYTES]
    return str(content).encode("utf-8", errors="backslashreplace")


def _document_of(raw: RawLine, record: Mapping[str, Any], options: ReadingOptions) -> Document | SkippedLine:
    found, text = field_of(record, options.text_field)
    if not found:
        return skipped(raw, "no_text_field")
    if text is None:
        return skipped(raw, "text_is_null")
    source = field_of(record, options.source_field)[1]
    try:
        text, source = _decoded(text), _decoded(source)
    except UnicodeDecodeError:
        return skipped(raw, "invalid_utf8")
    if not isinstance(text, str):
        return skipped(raw, "text_not_a_string")
    return _checked(raw, text, source if isinstance(source, str) and has_utf8(source) else None)


def _decoded(value: Any) -> Any:
    """Text of a binary column, as fastparquet writes it; any other value as it is."""
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _checked(raw: RawLine, text: str, source: str | None) -> Document | SkippedLine:
    if not text or text.isspace():  # `strip` would copy it
        return skipped(raw, "empty_text")
    try:
        utf8 = text.encode("utf-8")
    except UnicodeEncodeError:
        return skipped(raw, "lone_surrogate")
    return Document(text, source, raw.number, raw.byte_offset, None, utf8)


def field_of(record: Mapping[str, Any], name: str) -> tuple[bool, Any]:
    """Whether `record` has the field, and its value; a field of exactly this name has priority over a path."""
    if name in record:
        return True, record[name]
    if "." not in name:
        return False, None
    value: Any = record
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    return True, value


def has_utf8(text: str) -> bool:
    """Whether `text` can be written as UTF-8; a lone surrogate cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
