"""Files of all formats give their conversations; equal mistakes are one message with their number."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretraining.data.input.find import find_inputs
from pretraining.errors import UserError
from pretraining.finetuning.conversations import Conversation, check_conversations, read_conversations
from pretraining.finetuning.mappings import MAPPINGS

ASKED = {"role": "user", "content": "Who?"}
SAID = {"role": "assistant", "content": "They."}
PLAIN = {"prompt": "Who?", "response": "They."}
NO_ROLE = {"messages": [{"content": "Who?"}, SAID]}


def written(folder: Path, *lines: object, name: str = "chat.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def read(*paths: Path) -> list[Conversation]:
    return list(read_conversations(find_inputs([str(path) for path in paths]), MAPPINGS))


def problems_of(*paths: Path) -> Sequence[str]:
    with pytest.raises(UserError) as error:
        check_conversations(find_inputs([str(path) for path in paths]), MAPPINGS)
    return error.value.problems


def test_both_forms_are_read_and_blank_lines_are_none(tmp_path: Path) -> None:
    first, second = read(written(tmp_path, {**PLAIN, "id": 7}, "", {"messages": [ASKED, SAID]}))
    assert first.messages == second.messages == [ASKED, SAID]
    assert (first.line, second.line, second.source) == (1, 3, "chat")
    assert (first.mapping, second.mapping) == ("prompt/response", "messages")


def test_every_format_of_a_file_gives_the_same_conversations(tmp_path: Path) -> None:
    records = [{"prompt": f"Question {number}?", "response": "Yes.", "meta": {"n": number}} for number in range(5000)]
    lines = written(tmp_path, *records)
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    listed = tmp_path / "listed.json"
    listed.write_text(json.dumps(records, indent=1))
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(records), rows, row_group_size=1000)
    expected = [(one.messages, one.line) for one in read(lines)]
    assert len(expected) == 5000
    for path in (packed, listed, rows):
        assert [(one.messages, one.line) for one in read(path)] == expected


def test_a_thousand_equal_mistakes_are_one_message_with_their_first_place(tmp_path: Path) -> None:
    path = written(tmp_path, *[PLAIN] * 16, NO_ROLE, *[PLAIN] * 982, NO_ROLE)
    (told,) = problems_of(path)
    assert told.startswith(
        f"--data_files: a message without a role in 2 of 1,000 records (first: line 17 of {path}; found content); "
        "give each message the role system, user or assistant"
    )
    (told,) = problems_of(written(tmp_path, *[{"frage": "Wer?", "antwort": "Sie."}] * 1000))
    assert "no fields of a conversation in 1,000 of 1,000 records (first: line 1 of" in told
    assert "found frage, antwort); use one of messages, conversations, prompt and response, " in told
    assert "--prompt_field NAME --response_field NAME, or --messages_field NAME" in told


def test_each_kind_of_mistake_is_told_once_over_all_files(tmp_path: Path) -> None:
    first = written(tmp_path, PLAIN, "{", [ASKED], NO_ROLE)
    second = written(tmp_path, "not JSON, either", NO_ROLE, name="more.jsonl")
    told = problems_of(first, second)
    assert [problem.partition(" records")[0] for problem in told] == [
        "--data_files: a line that is not JSON in 2 of 6",
        "--data_files: a JSON list in 1 of 6",
        "--data_files: a message without a role in 2 of 6",
    ]
    assert f"line 2 of {first}" in told[0]


def test_the_place_is_a_line_a_row_or_a_record(tmp_path: Path) -> None:
    rows = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"question": ["Who?"]}), rows)
    (tmp_path / "list.json").write_text(json.dumps([PLAIN, {"question": "Who?"}]))
    assert "(first: row 1 of" in problems_of(rows)[0]
    assert "(first: record 2 of" in problems_of(tmp_path / "list.json")[0]
    (told,) = problems_of(written(tmp_path, '[{"prompt": "a", "response": "b"}, {', name="cut.json"))
    assert told.startswith("--data_files: a record that is not JSON in 1 of 2 records (first: record 2 of")
    (told,) = problems_of(written(tmp_path, '[{"prompt": "a", "response": "b"}, 7]', name="number.json"))
    assert told.startswith("--data_files: a JSON int in 1 of 2 records (first: record 2 of")
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 100_000 + "\n")
    assert "--data_files: " in problems_of(deep)[0]


def test_only_the_columns_of_conversations_are_read(tmp_path: Path) -> None:
    images = [bytes(7 << 20), b""]
    records = [{"instruction": "Who?", "input": "", "output": "They.", "image": image} for image in images]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "rows.parquet")
    assert [one.messages for one in read(tmp_path / "rows.parquet")] == [[ASKED, SAID]] * 2
    pq.write_table(pa.table({"prompt": ["Who?"], "answer": ["They."]}), tmp_path / "other.parquet")
    assert "found prompt, answer)" in problems_of(tmp_path / "other.parquet")[0]


def test_a_row_that_is_not_utf8_is_a_row(tmp_path: Path) -> None:
    texts = pa.array([b"\xff"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"prompt": texts, "response": ["They."]}), tmp_path / "rows.parquet")
    (told,) = problems_of(tmp_path / "rows.parquet")
    assert told.startswith("--data_files: a row that is not UTF-8 in 1 of 1 records (first: row 1 of")


def test_too_long_a_text_and_other_formats(tmp_path: Path) -> None:
    (told,) = problems_of(written(tmp_path, {"prompt": "a" * (7 << 20), "response": "b"}))
    assert "a text that is too long in 1 of 1 records" in told
    text = written(tmp_path, "Who?", name="chat.txt")
    assert problems_of(text) == (f"--data_files {text}: is text; use JSON lines, JSON or Parquet",)


def test_what_has_nothing_to_learn_comes_with_its_reason(tmp_path: Path) -> None:
    empty, whole = read(written(tmp_path, {"instruction": "Say nothing.", "input": "", "output": ""}, PLAIN))
    assert (empty.skip_reason, empty.messages, empty.line) == ("empty_message", [], 1)
    assert "Say nothing." in empty.first_bytes
    assert (whole.skip_reason, whole.messages) == (None, [ASKED, SAID])
