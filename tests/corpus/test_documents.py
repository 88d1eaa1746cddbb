import json
from pathlib import Path

import pytest

from pretraining.cli.errors import UserError
from pretraining.corpus.documents import Document, JsonFields, SkippedLine, check_data_files, read_documents

FIELDS = JsonFields("text", "source")


def lines_of(path: Path, content: bytes) -> list[Document | SkippedLine]:
    path.write_bytes(content)
    return list(read_documents([path], FIELDS))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\n", "blank_line"),
        (b"{'text': 1}\n", "not_json"),
        (b'{"text": "cut\n', "not_json"),
        (b'{"text": "\\ud800"}\n', "not_json"),
        (b'{"text": "\xff\xfe"}\n', "invalid_utf8"),
        (b'["text"]\n', "not_an_object"),
        (b'{"body": "x"}\n', "no_text_field"),
        (b'{"text": null}\n', "text_not_a_string"),
        (b'{"text": 5}\n', "text_not_a_string"),
        (b'{"text": " \\n "}\n', "empty_text"),
    ],
)
def test_a_bad_line_is_skipped_with_its_reason_and_its_neighbours_are_read(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    good = b'{"text": "good"}\n'
    first, middle, last = lines_of(tmp_path / "a.jsonl", good + line + good)
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert isinstance(middle, SkippedLine)
    assert (middle.line, middle.reason) == (2, reason)
    assert last.byte_offset == len(good) + len(line)


def test_crlf_byte_order_mark_and_missing_last_newline(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}'
    documents = lines_of(tmp_path / "a.jsonl", content)
    assert [document.text for document in documents] == ["one", "two"]


def test_each_line_comes_out_once_with_the_place_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "news.jsonl"
    records = [{"text": f"  story {number} é\n", "source": "world"} for number in range(50)]
    documents = lines_of(path, "".join(json.dumps(record) + "\n" for record in records).encode())
    raw = path.read_bytes()
    for number, document in enumerate(documents):
        assert isinstance(document, Document)
        assert document.line == number + 1
        line = raw[document.byte_offset : document.byte_offset + document.line_bytes]
        assert json.loads(line)["text"] == document.text == records[number]["text"]


def test_the_source_is_the_field_or_else_the_name_of_the_file(tmp_path: Path) -> None:
    documents = lines_of(tmp_path / "news.jsonl", b'{"text": "a", "source": "sport"}\n{"text": "b", "source": 3}\n')
    assert [document.source for document in documents] == ["sport", "news"]


def test_all_unusable_files_are_named_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(UserError) as caught:
        check_data_files([tmp_path / "missing.jsonl", empty, tmp_path])
    assert [problem.split(": ")[1].split(";")[0] for problem in caught.value.problems] == [
        "there is no such file",
        "is empty",
        "is not a file",
    ]
