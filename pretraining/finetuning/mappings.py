"""From the fields of a record to the messages of a conversation: one table of the formats that data sets use.

The first entry whose fields a record has applies to it, so one file may mix formats.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretraining.cli.arguments.finetune import ConversationArguments
from pretraining.data.input.documents import field_of, has_utf8
from pretraining.errors import shortened

# Roles of the templates, and the names that data sets give them.
ROLES = {"system": "system", "user": "user", "human": "user", "prompter": "user", "assistant": "assistant"}
ROLES |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant")
ROLE_FIELDS, TEXT_FIELDS = ("role", "from"), ("content", "value")
ROLES_REMEDY = "give each message the role system, user or assistant (human and gpt, as in ShareGPT, are read, too)"
TEXT_REMEDY = "this suite trains on text: use a string"
NUM_SHOWN_FIELDS = 8
NAMED = "named fields"

Message = dict[str, str]
Record = Mapping[str, Any]


class InvalidRecordError(Exception):
    """A mistake in the data: what it is, what the record has instead, and the remedy."""

    def __init__(self, what: str, found: str, remedy: str) -> None:
        super().__init__(what)
        self.what, self.found, self.remedy = what, found, remedy


class UnusableRecordError(Exception):
    """A record of the right form that has nothing to learn: `reason` is that of skipped.jsonl."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class FieldMapping:
    """A format: its name, the fields that a record of it has, how they become messages, and fields it may have."""

    name: str
    fields: tuple[str, ...]
    to_messages: Callable[[Record], Any]
    optional: tuple[str, ...] = ()

    def applies_to(self, record: Record) -> bool:
        """Whether the record has all of the fields."""
        return all(field_of(record, name)[0] for name in self.fields)

    def is_filled_in(self, record: Record) -> bool:
        """Whether none of the fields is null, as columns of other formats are in Parquet."""
        return all(field_of(record, name)[1] is not None for name in self.fields)


def _turns(
    prompt: str, response: str, *, context: str | None = None, system: str | None = None
) -> Callable[[Record], Any]:
    """Messages from the fields of one question; `context` follows the prompt after an empty line.

    Prompt and response may also be lists of messages, as in the conversational format of TRL.
    """

    def to_messages(record: Record) -> Any:
        asked, answered = field_of(record, prompt)[1], field_of(record, response)[1]
        if isinstance(asked, list) and isinstance(answered, list):
            return [*asked, *answered]
        more = _value_of(record, context)
        if more is not None and not isinstance(more, str):
            raise InvalidRecordError(f"{context} that is not a text", _type_name(more), TEXT_REMEDY)
        if isinstance(asked, str) and more and more.strip():
            asked = f"{asked.strip()}\n\n{more}"
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return [{"role": "system", "content": _value_of(record, system)}, *turns]

    return to_messages


def _list_of(messages: str, *, system: str | None = None) -> Callable[[Record], Any]:
    """Messages as the record has them, after a system message from another field."""

    def to_messages(record: Record) -> Any:
        found, text = field_of(record, messages)[1], _value_of(record, system)
        return [{"role": "system", "content": text}, *found] if text and isinstance(found, list) else found

    return to_messages


def _value_of(record: Record, name: str | None) -> Any:
    """The value of a field; None without a name. An empty one is a name, too: that of the index column in many CSVs."""
    return None if name is None else field_of(record, name)[1]


MAPPINGS = (
    FieldMapping("messages", ("messages",), _list_of("messages")),
    FieldMapping("sharegpt", ("conversations",), _list_of("conversations", system="system"), ("system",)),
    FieldMapping("prompt/response", ("prompt", "response"), _turns("prompt", "response")),
    FieldMapping("prompt/completion", ("prompt", "completion"), _turns("prompt", "completion")),
    FieldMapping(
        "alpaca",
        ("instruction", "output"),
        _turns("instruction", "output", context="input", system="system"),
        ("input", "system"),
    ),
    FieldMapping("firefly", ("input", "target"), _turns("input", "target")),
)


def mappings_for(flags: ConversationArguments) -> Sequence[FieldMapping]:
    """The mapping of the fields that flags name, or else the table."""
    optional = tuple(name for name in (flags.input_field, flags.system_field) if name is not None)
    if flags.messages_field is not None:
        to_messages = _list_of(flags.messages_field, system=flags.system_field)
        return [FieldMapping(NAMED, (flags.messages_field,), to_messages, optional)]
    if flags.prompt_field is None or flags.response_field is None:
        return MAPPINGS
    prompt, response = flags.prompt_field, flags.response_field
    to_messages = _turns(prompt, response, context=flags.input_field, system=flags.system_field)
    return [FieldMapping(NAMED, (prompt, response), to_messages, optional)]


def messages_of(record: Record, mappings: Sequence[FieldMapping]) -> tuple[str, list[Message]]:
    """The name of a record's mapping, and its messages with the roles of the templates; the last is an answer.

    Raises:
        InvalidRecordError: when fields or roles are missing or wrong.
        UnusableRecordError: when a text or an answer is missing.
    """
    found = [mapping for mapping in mappings if mapping.applies_to(record)]
    if not found:
        raise InvalidRecordError("no fields of a conversation", _names(record), _fields_remedy(mappings))
    mapping = next((one for one in found if one.is_filled_in(record)), found[0])
    messages = mapping.to_messages(record)
    if not isinstance(messages, list):
        remedy = "use a list of objects with role and content"
        raise InvalidRecordError(f"{mapping.fields[0]} that is not a list", _type_name(messages), remedy)
    read = [_message(message, is_first=number == 0) for number, message in enumerate(messages)]
    kept = [message for message in read if message["content"] or message["role"] != "system"]
    if not all(message["content"] for message in kept):
        raise UnusableRecordError("empty_message")
    while kept and kept[-1]["role"] != "assistant":
        kept.pop()  # no loss covers what follows the last answer
    if not kept:
        raise UnusableRecordError("no_answer")
    return mapping.name, kept


def _message(message: Any, *, is_first: bool) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidRecordError("a message that is not an object", _type_name(message), "use role and content")
    role = next((message[name] for name in ROLE_FIELDS if message.get(name) is not None), None)
    if role is None:
        raise InvalidRecordError("a message without a role", _names(message), ROLES_REMEDY)
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRecordError(f"a message with the role {shortened(repr(role))}", _names(message), ROLES_REMEDY)
    if ROLES[role] == "system" and not is_first:
        raise InvalidRecordError("a system message after the first message", _names(message), "move it to the front")
    return {"role": ROLES[role], "content": _text_of(message)}


def _text_of(message: Record) -> str:
    """The text of a message as it is; empty where there is nothing but space."""
    found = [message[name] for name in TEXT_FIELDS if name in message]
    if not found:
        raise InvalidRecordError("a message without content", _names(message), "give each message a content")
    text = next((text for text in found if text is not None), "")
    if not isinstance(text, str):
        raise InvalidRecordError("a message whose content is not a text", _type_name(text), TEXT_REMEDY)
    if not has_utf8(text):
        raise InvalidRecordError("a text that is not UTF-8", repr(text[:NUM_SHOWN_FIELDS]), "save the file as UTF-8")
    return text if text.strip() else ""


def _fields_remedy(mappings: Sequence[FieldMapping]) -> str:
    if mappings is not MAPPINGS:
        names = ", ".join(mappings[0].fields)
        return f"fix the flags that name {names} (--prompt_field, --response_field, --messages_field)"
    known = ", ".join(" and ".join(mapping.fields) for mapping in mappings)
    return f"use one of {known}, or name yours: --prompt_field NAME --response_field NAME, or --messages_field NAME"


def _names(record: Record) -> str:
    """The names of the fields that are there."""
    names = [shortened(str(name)) for name in record]
    return ", ".join(names[:NUM_SHOWN_FIELDS]) + (", ..." if len(names) > NUM_SHOWN_FIELDS else "") or "nothing"


def _type_name(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bytes: "bytes",
        type(None): "null",
        bool: "true or false",
    }
    return names.get(type(value), "a number")
