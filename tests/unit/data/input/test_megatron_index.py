"""An index finds the documents of its file, and a bad one is one line."""

import bisect
from pathlib import Path

import pytest

from pretraining.data.input.find import find_inputs
from pretraining.data.input.megatron_index import open_index
from pretraining.errors import UserError
from tests.unit.data.input.test_token_files import some_documents, write_megatron


def test_documents_are_found_by_number_and_by_offset(tmp_path: Path) -> None:
    documents = [*some_documents(20), [], [], [5]]
    index = open_index(write_megatron(tmp_path / "a.bin", documents, dtype="<i4"))
    starts = [4 * sum(map(len, documents[:number])) for number in range(len(documents) + 1)]
    assert index.num_documents == len(documents)
    assert [index.start_of(number) for number in range(len(documents) + 1)] == starts
    for offset in range(starts[-1]):
        assert index.first_from(offset) == bisect.bisect_left(starts[:-1], offset)


def damaged(kind: str, path: Path) -> None:
    """Damage both files of Megatron."""
    index, content = path.with_suffix(".idx"), bytearray(path.with_suffix(".idx").read_bytes())
    if kind == "missing":
        index.unlink()
        return
    if kind == "longer":
        path.write_bytes(path.read_bytes() + b"\0\0")
    changes = {
        "other": (0, b"TNTIDX"), "version": (9, b"\2"), "type": (17, b"\7"), "huge": (18, b"\xff" * 8),
        "length": (34, b"\xff\xff\xff\xff"), "offset": (34 + 3 * 4, b"\1"), "documents": (34 + 3 * 12, b"\1"),
    }  # fmt: skip
    place, new = changes.get(kind, (0, b""))
    content[place : place + len(new)] = new
    index.write_bytes(content[:-4] if kind == "cut" else content)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", r"its index a_document\.idx is missing; copy it beside this file"),
        ("longer", r"has 12 bytes, and 10 by a_document\.idx; copy both again"),
        ("other", r"a_document\.idx is not an index of Megatron; copy it again"),
        ("version", r"a_document\.idx has version 2 and type 8, which are not read"),
        ("type", r"a_document\.idx has version 1 and type 7, which are not read"),
        ("huge", r"a_document\.idx has 102 bytes, and [\d,]+ by its header; copy it again"),
        ("cut", r"a_document\.idx has 98 bytes, and 102 by its header; copy it again"),
        ("length", r"a_document\.idx is damaged, its sequences have gaps; copy it again"),
        ("offset", r"a_document\.idx is damaged, its sequences have gaps; copy it again"),
        ("documents", r"a_document\.idx is damaged, its documents have gaps; copy it again"),
    ],
)
def test_a_bad_index_is_one_line(tmp_path: Path, kind: str, reason: str) -> None:
    path = write_megatron(tmp_path / "a_document.bin", [[5], [6, 7], [8, 9]])
    assert path.stat().st_size == 10
    damaged(kind, path)
    with pytest.raises(UserError, match=rf"^--data_files .*a_document\.bin: {reason}"):
        find_inputs([str(path)], takes_tokens=True)
