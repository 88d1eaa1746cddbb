"""A line is a conversation, or a mistake that is told with its place; what is left out is listed."""

import json
from pathlib import Path

import pytest

from pretraining.data.input.find import find_inputs
from pretraining.errors import UserError
from pretraining.finetuning.conversations import read_conversations

ASKED = {"role": "user", "content": "Who?"}
SAID = {"role": "assistant", "content": "They."}


def written(folder: Path, *lines: object) -> Path:
    path = folder / "chat.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_both_forms_are_read_and_blank_lines_are_none(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "Who?", "response": "They.", "id": 7}, "", {"messages": [ASKED, SAID]})
    first, second = read_conversations(find_inputs([str(path)]))
    assert first.messages == second.messages == [ASKED, SAID]
    assert (first.line, second.line, second.source) == (1, 3, "chat")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"text": "a"}, "has neither prompt and response nor messages (found text)"),
        ({"prompt": "a"}, "has neither prompt and response nor messages (found prompt)"),
        ({"prompt": "a", "response": None}, "message 2 of the assistant has no text"),
        ({"prompt": " ", "response": "b"}, "message 1 of the user has no text"),
        ({"messages": []}, "messages is not a list, or is empty"),
        ({"messages": [ASKED]}, "ends with a message of the user"),
        ({"messages": [{"role": "robot", "content": "a"}, SAID]}, "message 1 has the role 'robot'; use system, user"),
        (
            {"messages": [ASKED, {"role": "system", "content": "a"}, SAID]},
            "message 2 has the role 'system', which only",
        ),
        ({"messages": [ASKED, "They."]}, "message 2 has the role None"),
        ([ASKED], "is a JSON list"),
        ("{", "not JSON"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, line: object, problem: str) -> None:
    path = written(tmp_path, {"prompt": "a", "response": "b"}, line)
    with pytest.raises(UserError) as error:
        list(read_conversations(find_inputs([str(path)])))
    (told,) = error.value.problems
    assert told.startswith(f"{path}:2: {problem}")


def test_ten_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, *[{}] * 12)
    with pytest.raises(UserError) as error:
        list(read_conversations(find_inputs([str(path)])))
    assert len(error.value.problems) == 10
