"""Read conversations from files of any supported format; equal mistakes are reported once, with their number."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from pretraining.data.input.documents import BYTE_ORDER_MARK, SHOWN_BYTES, RawLine, ReadingOptions
from pretraining.data.input.files import InputFile
from pretraining.data.input.reading import read_batches
from pretraining.data.input.slices import cut_slices
from pretraining.errors import raise_problems
from pretraining.finetuning.mappings import (
    FieldMapping,
    InvalidRecordError,
    Message,
    Record,
    UnusableRecordError,
    messages_of,
)

MAX_LINE_BYTES = 6 << 20
MAX_PROBLEMS = 10  # kinds of mistakes that are reported


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of role and content, the last one the assistant's, their place, and the name of their mapping.

    One with a `skip_reason` has nothing to learn, and no messages; `first_bytes` show it.
    """

    messages: list[Message]
    source: str
    file: str
    line: int
    byte_offset: int
    mapping: str = ""
    skip_reason: str | None = None
    first_bytes: str = ""

    @property
    def text(self) -> bytes:
        """The messages as JSON, by which conversations are compared."""
        return orjson.dumps(self.messages)


def check_conversations(files: Sequence[InputFile], mappings: Sequence[FieldMapping]) -> None:
    """Read all records, so that mistakes are reported before anything is loaded.

    Raises:
        UserError: as `read_conversations`.
    """
    for _ in read_conversations(files, mappings):
        pass


def read_conversations(files: Sequence[InputFile], mappings: Sequence[FieldMapping]) -> Iterator[Conversation]:
    """The conversations of all records, in order; blank lines are no records.

    Raises:
        UserError: after the last record, for each kind of mistake once; records with a mistake are not skipped.
    """
    problems = _Problems()
    for file, raw in _records_of(files, mappings):
        problems.num_records += 1
        place = (file.default_source, file.path, raw.number, raw.byte_offset)
        try:
            record = _parsed(file, raw)
            name, messages = messages_of(record, mappings)
            yield Conversation(messages, *place, name)
        except UnusableRecordError as error:
            shown = str(record)[:SHOWN_BYTES].encode("utf-8", "backslashreplace").decode()
            yield Conversation([], *place, skip_reason=error.reason, first_bytes=shown)
        except InvalidRecordError as error:
            problems.add(error, f"{_unit(file, raw)} {raw.number} of {file.path}")
    problems.raise_all()


class _Problems:
    """Mistakes by their kind: the first one with its place, and how many there are."""

    def __init__(self) -> None:
        self.num_records = 0
        self._first: dict[str, tuple[InvalidRecordError, str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, error: InvalidRecordError, place: str) -> None:
        """Count a mistake."""
        self._counts[error.what] += 1
        self._first.setdefault(error.what, (error, place))

    def raise_all(self) -> None:
        """Raise a `UserError` for the first kinds, if there are any."""
        lines = [
            f"--data_files: {error.what} in {self._counts[what]:,} of {self.num_records:,} records (first: {place}; "
            f"found {error.found}); {error.remedy}"
            for what, (error, place) in self._first.items()
        ]
        raise_problems(lines[:MAX_PROBLEMS])


def _records_of(files: Sequence[InputFile], mappings: Sequence[FieldMapping]) -> Iterator[tuple[InputFile, RawLine]]:
    others = (file for file in files if file.format not in ("jsonl", "parquet"))
    raise_problems(f"--data_files {file.path}: is {file.format}; use JSON lines, JSON or Parquet" for file in others)
    (ranges,) = cut_slices(files, 1)
    options = ReadingOptions(
        MAX_LINE_BYTES,
        whole_records=True,
        record_fields=tuple(mapping.fields for mapping in mappings),
        more_fields=tuple(name for mapping in mappings for name in mapping.optional),
    )
    for batch in read_batches(files, ranges, None, options):
        for raw in batch.lines:
            if not isinstance(raw.content, bytes) or raw.content.strip() or batch.file.format == "parquet":
                yield batch.file, raw


def _parsed(file: InputFile, raw: RawLine) -> Record:
    """The record of a line, a row or an item of a list.

    Raises:
        InvalidRecordError: when it is none.
    """
    if raw.content is None:
        raise InvalidRecordError("a text that is too long", f"more than {MAX_LINE_BYTES:,} bytes", "remove or split it")
    if isinstance(raw.content, Mapping):
        return raw.content
    assert isinstance(raw.content, bytes), "of JSON lines and Parquet"
    if file.format == "parquet":
        raise InvalidRecordError("a row that is not UTF-8", "other bytes", "write its texts as UTF-8")
    content = raw.content.removeprefix(BYTE_ORDER_MARK) if raw.number == 1 else raw.content
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        shown = content[:SHOWN_BYTES].strip(b"\0 \r\n").decode("utf-8", errors="backslashreplace")
        remedy = "use JSON lines, a JSON list or Parquet"
        raise InvalidRecordError(f"a {_unit(file, raw)} that is not JSON", f"{shown!r}: {error}", remedy) from None
    if not isinstance(record, dict):
        remedy = "use an object with fields such as prompt and response, or messages"
        raise InvalidRecordError(f"a JSON {type(record).__name__}", "no fields", remedy)
    return record


def _unit(file: InputFile, raw: RawLine) -> str:
    """What the number of a record counts."""
    if file.format == "parquet":
        return "row"
    return "record" if raw.is_item else "line"
