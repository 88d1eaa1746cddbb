"""The items of a JSON list, however it is laid out and cut into reads, and what is no item."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from pretraining.data.input.documents import RawLine, ReadingOptions
from pretraining.data.input.find import find_inputs
from pretraining.data.input.json import lists
from pretraining.data.input.reading import read_batches
from pretraining.data.input.slices import cut_slices

MAX_BYTES = 500
RECORDS: list[dict[str, Any]] = [
    {"text": 'a "quoted" ] [ word', "n": 1},
    {"text": "Zürich, 東京 \N{GRINNING FACE}", "nested": [{"a": [1, {}]}]},
    {},
    {"text": "\\"},
    {"values": [True, None, -1.5e-3, 10**30]},
]


def items_of(path: Path, *, whole_records: bool = True) -> list[RawLine]:
    files = find_inputs([str(path)])
    (ranges,) = cut_slices(files, 1)
    options = ReadingOptions(MAX_BYTES, whole_records=whole_records)
    return [line for batch in read_batches(files, ranges, None, options) for line in batch.lines]


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("read_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_items_are_those_of_the_list_at_their_bytes(
    indent: int | None, read_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "READ_BYTES", read_bytes)
    content = json.dumps(RECORDS, indent=indent, ensure_ascii=indent is None).encode()
    lines = items_of(written(tmp_path / "a.json", content))
    assert [line.content for line in lines] == RECORDS
    assert [line.number for line in lines] == [1, 2, 3, 4, 5]
    assert [json.loads(content[line.byte_offset : line.end_offset]) for line in lines] == RECORDS


def test_a_compressed_list_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    content = gzip.compress(b"\xef\xbb\xbf \n" + json.dumps(RECORDS).encode() + b"\n\n")
    assert [line.content for line in items_of(written(tmp_path / "a.json.gz", content))] == RECORDS
    assert items_of(written(tmp_path / "b.json", "[ ]\n")) == []


@pytest.mark.parametrize(
    ("content", "num_items"),
    [
        ('[{"a": 1}, {"a": ', 1),
        ('[{"a": 1}, ]', 1),
        ('[{"a": 1} {"a": 2}]', 1),
        ('[{"a": 1}', 1),
        ('[{"a": 1}]\n[{"a": 2}]', 1),
        ("[1, 2]", 0),
        ("[" * 100_000, 0),
        # Much text behind a mistake does not make it a long item.
        ('[{"a": 1}, {"b" 2}, ' + '{"c": 3}, ' * MAX_BYTES + "{}]", 1),
        ('[{"a": 1}, {"b": tru, "c": 3}' + ', {"c": 3}' * MAX_BYTES + "]", 1),
    ],
)
def test_what_is_no_item_is_a_last_line_that_is_no_record(content: str, num_items: int, tmp_path: Path) -> None:
    *items, last = items_of(written(tmp_path / "a.json", content))
    assert len(items) == num_items
    assert all(isinstance(item.content, dict) for item in items)
    assert isinstance(last.content, bytes)
    assert last.number == num_items + 1


def test_an_item_that_is_too_long_has_no_content(tmp_path: Path) -> None:
    lines = items_of(written(tmp_path / "a.json", json.dumps([{"a": "short"}, {"a": "long" * MAX_BYTES}])))
    assert [line.content for line in lines] == [{"a": "short"}, None]


def test_lines_stay_lines_where_records_have_two_fields(tmp_path: Path) -> None:
    (line,) = items_of(written(tmp_path / "a.json", json.dumps(RECORDS)), whole_records=False)
    assert isinstance(line.content, bytes)
