"""The fields of each format become the messages that its data set means."""

from typing import Any

import pytest

from pretraining.cli.arguments.finetune import ConversationArguments
from pretraining.errors import UserError
from pretraining.finetuning.mappings import (
    MAPPINGS,
    InvalidRecordError,
    UnusableRecordError,
    mappings_for,
    messages_of,
)

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
ASKED = {"role": USER, "content": "Who?"}
SAID = {"role": ASSISTANT, "content": "They."}
BRIEF = {"role": SYSTEM, "content": "Be brief."}


def flags_of(**fields: str) -> ConversationArguments:
    return ConversationArguments(model="model", data_files=["chat.jsonl"], **fields)


@pytest.mark.parametrize(
    ("name", "record", "messages"),
    [
        ("messages", {"messages": [BRIEF, ASKED, SAID], "id": 7}, [BRIEF, ASKED, SAID]),
        (
            "sharegpt",
            {"id": "a", "conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "They."}]},
            [ASKED, SAID],
        ),
        (
            "sharegpt",
            {
                "system": "Be brief.",
                "conversations": [{"from": "user", "value": "Who?"}, {"from": "bing", "value": "I"}],
            },
            [BRIEF, ASKED, {"role": ASSISTANT, "content": "I"}],
        ),
        ("prompt/response", {"prompt": "Who?", "response": "They."}, [ASKED, SAID]),
        ("prompt/completion", {"prompt": "Who?", "completion": "They."}, [ASKED, SAID]),
        ("prompt/completion", {"prompt": [BRIEF, ASKED], "completion": [SAID]}, [BRIEF, ASKED, SAID]),
        ("alpaca", {"instruction": "Who?", "input": "", "output": "They."}, [ASKED, SAID]),
        ("alpaca", {"instruction": "Who?", "output": "They."}, [ASKED, SAID]),
        (
            "alpaca",
            {"instruction": "Classify. ", "input": "oak", "output": "tree", "system": "Be brief."},
            [BRIEF, {"role": USER, "content": "Classify.\n\noak"}, {"role": ASSISTANT, "content": "tree"}],
        ),
        ("firefly", {"kind": "NLI", "input": "Who?", "target": "They."}, [ASKED, SAID]),
        # CSV exports name the column of row numbers by an empty text.
        ("prompt/response", {"": 0, "prompt": "Who?", "response": "They."}, [ASKED, SAID]),
        ("sharegpt", {"": "0", "conversations": [ASKED, SAID]}, [ASKED, SAID]),
        ("messages", {"": "0", "messages": [ASKED, SAID]}, [ASKED, SAID]),
        # A schema of both forms has null in the fields of the other one.
        (
            "messages",
            {"messages": [{"role": USER, "content": None, "value": "Who?"}, {**SAID, "value": None}]},
            [ASKED, SAID],
        ),
        # Of the columns of several formats in one Parquet file, those of others are null.
        ("alpaca", {"messages": None, "instruction": "Who?", "output": "They."}, [ASKED, SAID]),
        # An empty system message is none, and what follows the last answer has no loss.
        ("messages", {"messages": [{"role": SYSTEM, "content": " "}, ASKED, SAID, ASKED]}, [ASKED, SAID]),
    ],
)
def test_each_format_gives_its_messages(name: str, record: dict[str, Any], messages: list[dict[str, str]]) -> None:
    assert messages_of(record, MAPPINGS) == (name, messages)


def test_named_fields_are_the_only_ones() -> None:
    flags = flags_of(prompt_field="qa.question", response_field="qa.answer", input_field="text", system_field="role")
    record = {"qa": {"question": "Who?", "answer": "They."}, "text": "A tale.", "role": "Be brief.", "messages": []}
    asked = {"role": USER, "content": "Who?\n\nA tale."}
    assert messages_of(record, mappings_for(flags)) == ("named fields", [BRIEF, asked, SAID])
    assert flags.field_names == "prompt=qa.question response=qa.answer input=text system=role"
    flags = flags_of(messages_field="chat")
    assert messages_of({"chat": [ASKED, SAID]}, mappings_for(flags)) == ("named fields", [ASKED, SAID])
    with pytest.raises(InvalidRecordError) as error:
        messages_of({"messages": [ASKED, SAID]}, mappings_for(flags))
    assert "--messages_field" in error.value.remedy
    assert flags_of().field_names == "messages"
    flags, record = flags_of(prompt_field="q", response_field="a"), {"": 0, "q": "Who?", "a": "They."}
    assert messages_of(record, mappings_for(flags)) == ("named fields", [ASKED, SAID])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"prompt_field": "question"}, "--prompt_field, --response_field: belong together"),
        ({"input_field": "text"}, "--input_field: has no effect without --prompt_field"),
        ({"system_field": "role"}, "--system_field: has no effect without"),
        ({"prompt_field": "a", "response_field": "b", "messages_field": "c"}, "--messages_field: excludes"),
    ],
)
def test_flags_of_fields_that_contradict_each_other(fields: dict[str, str], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        flags_of(**fields)


@pytest.mark.parametrize(
    ("record", "what", "found"),
    [
        ({"text": "a"}, "no fields of a conversation", "text"),
        ({}, "no fields of a conversation", "nothing"),
        ({"prompt": "a"}, "no fields of a conversation", "prompt"),
        ({"messages": "Who?"}, "messages that is not a list", "a string"),
        ({"messages": [ASKED, "They."]}, "a message that is not an object", "a string"),
        ({"messages": [{"content": "a", "name": "b"}, SAID]}, "a message without a role", "content, name"),
        ({"messages": [{"role": "robot", "content": "a"}, SAID]}, "a message with the role 'robot'", "role, content"),
        ({"messages": [{"role": 7, "content": "a"}, SAID]}, "a message with the role 7", "role, content"),
        ({"messages": [{"role": [], "content": "a"}, SAID]}, "a message with the role []", "role, content"),
        ({"messages": [ASKED, BRIEF, SAID]}, "a system message after the first message", "role, content"),
        ({"messages": [{"role": USER}, SAID]}, "a message without content", "role"),
        ({"prompt": "a", "response": 7}, "a message whose content is not a text", "a number"),
        ({"instruction": "a", "input": [1], "output": "b"}, "input that is not a text", "a list"),
        ({"prompt": b"a", "response": "b"}, "a message whose content is not a text", "bytes"),
        ({"prompt": [ASKED], "response": "b"}, "a message whose content is not a text", "a list"),
        ({"prompt": "a\ud800", "response": "b"}, "a text that is not UTF-8", "'a\\ud800'"),
    ],
)
def test_a_mistake_names_what_is_there(record: dict[str, Any], what: str, found: str) -> None:
    with pytest.raises(InvalidRecordError) as error:
        messages_of(record, MAPPINGS)
    assert (error.value.what, error.value.found) == (what, found)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "no_answer"),
        ({"messages": [ASKED]}, "no_answer"),
        ({"prompt": "a", "response": None}, "empty_message"),
        ({"prompt": " ", "response": "b"}, "empty_message"),
        ({"instruction": "a", "input": "", "output": ""}, "empty_message"),
    ],
)
def test_nothing_to_learn_is_no_mistake(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnusableRecordError) as error:
        messages_of(record, MAPPINGS)
    assert error.value.reason == reason
