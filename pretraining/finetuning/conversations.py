"""Read conversations; each line must be one that ends with an answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from pretraining.data.input.documents import BYTE_ORDER_MARK, RawLine, ReadingOptions
from pretraining.data.input.find import InputFile
from pretraining.data.input.reading import read_batches
from pretraining.data.input.slices import cut_slices
from pretraining.errors import raise_problems

ROLES = ("system", "user", "assistant")
MAX_LINE_BYTES = 6 << 20
MAX_PROBLEMS = 10  # reported at once

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of role and content, the last one the assistant's, and their place."""

    messages: list[Message]
    source: str
    file: str
    line: int
    byte_offset: int

    @property
    def text(self) -> bytes:
        """The messages as JSON, by which conversations are compared."""
        return orjson.dumps(self.messages)


def read_conversations(files: Sequence[InputFile]) -> Iterator[Conversation]:
    """The conversations of all lines that are not blank, in order.

    Raises:
        UserError: for the first ten invalid lines: the data are small, so none is skipped.
    """
    problems = []
    for file, raw in _lines_of(files):
        found = _messages_of(raw)
        if isinstance(found, str):
            problems.append(f"{file.path}:{raw.number}: {found}")
        else:
            yield Conversation(found, file.default_source, file.path, raw.number, raw.byte_offset)
        if len(problems) == MAX_PROBLEMS:
            break
    raise_problems(problems)


def _lines_of(files: Sequence[InputFile]) -> Iterator[tuple[InputFile, RawLine]]:
    others = (file for file in files if file.format != "jsonl")
    raise_problems(f"--data_files {file.path}: is {file.format}; use JSON lines" for file in others)
    (ranges,) = cut_slices(files, 1)
    options = ReadingOptions(MAX_LINE_BYTES)
    for batch in read_batches(files, ranges, None, options):
        for raw in batch.lines:
            if not isinstance(raw.content, bytes) or raw.content.strip():
                yield batch.file, raw


def _messages_of(raw: RawLine) -> list[Message] | str:
    """The messages of a line, or its problem."""
    if not isinstance(raw.content, bytes):
        return f"is longer than {MAX_LINE_BYTES:,} bytes; remove it"
    try:
        record = orjson.loads(raw.content.removeprefix(BYTE_ORDER_MARK) if raw.number == 1 else raw.content)
    except orjson.JSONDecodeError as error:
        return f"not JSON ({error})"
    if not isinstance(record, dict):
        return f"is a JSON {type(record).__name__}; use an object with prompt and response, or messages"
    if "messages" not in record and not {"prompt", "response"} <= set(record):
        return f"has neither prompt and response nor messages (found {', '.join(record) or 'nothing'})"
    messages = record.get("messages")
    if messages is None:
        names = {"prompt": "user", "response": "assistant"}
        messages = [{"role": role, "content": record.get(name)} for name, role in names.items()]
    return _problem_of(messages) or [{"role": one["role"], "content": one["content"]} for one in messages]


def _problem_of(messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "messages is not a list, or is empty; use objects of role and content"
    for number, message in enumerate(messages, start=1):
        problem = _problem_of_one(message, is_first=number == 1)
        if problem is not None:
            return f"message {number} {problem}"
    if messages[-1]["role"] != "assistant":
        return f"ends with a message of the {messages[-1]['role']}; the last one must be the assistant's"
    return None


def _problem_of_one(message: Any, *, is_first: bool) -> str | None:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
    if role not in ROLES:
        return f"has the role {role!r}; use {', '.join(ROLES)}"
    if role == "system" and not is_first:
        return "has the role 'system', which only the first may have"
    if not isinstance(content, str) or not content.strip():
        return f"of the {role} has no text; content must be a string"
    return None
