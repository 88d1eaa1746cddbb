"""Lines that are read many at a time are those that are read one by one, wherever the buffer ends."""

import io
import random
from pathlib import Path
from typing import Any

import pytest

from pretraining.data.input import formats, line_blocks, reading
from pretraining.data.input.documents import RawLine, ReadingOptions
from pretraining.data.input.files import InputFile
from pretraining.data.input.line_blocks import LineBlock, read_line_blocks
from pretraining.data.input.reading import read_batches
from pretraining.data.input.slices import FileRange

MAX_BYTES = 60


def some_lines(seed: int) -> bytes:
    """Mostly usual lines; blank ones, such that begin with a space, and too large ones."""
    chosen = random.Random(seed)
    share = chosen.choice([0.0, 0.02, 0.3, 0.9])
    lines = []
    for number in range(chosen.randrange(80)):
        line = b"%d" % number * chosen.randrange(1, 9)
        if chosen.random() < share:
            line = chosen.choice([b"", b"", b" \t", b" " * 70, b" a", b"\x0bb", b"x" * 70, b"\r"])
        lines.append(line + chosen.choice([b"\n", b"\n", b"\r\n"]))
    return b"".join(lines)[: None if chosen.random() < 0.5 else -1]


def one_by_one(content: bytes, offset: int, number: int, end: int | None) -> list[RawLine]:
    stream = io.BufferedReader(io.BytesIO(content[offset:]))  # type: ignore[arg-type]
    return list(formats._lines(stream, offset, number, end, MAX_BYTES))


@pytest.mark.parametrize("seed", range(60))
def test_lines_and_batches_are_the_same(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lines.jsonl"
    content = some_lines(seed)
    path.write_bytes(content)
    chosen = random.Random(seed)
    buffer_bytes = chosen.choice([16, 100, 1000, 1 << 20])
    for module in (formats, line_blocks):
        monkeypatch.setattr(module, "READ_BUFFER_BYTES", buffer_bytes)
    monkeypatch.setattr(reading, "BATCH_BYTES", 4000)
    file = InputFile("lines.jsonl", None, "jsonl", None, len(content), str(path))
    starts = [(0, 0), *((line.end_offset, line.end_line) for line in one_by_one(content, 0, 0, None))]
    begin, number = chosen.choice(starts[:-1] or starts)
    end = chosen.choice([None, *(offset for offset, _ in starts if offset > begin)])
    options = ReadingOptions(max_document_bytes=MAX_BYTES)

    batches = list(read_batches([file], [FileRange(0, begin, end, number + 1)], None, options))

    expected = one_by_one(content, begin, number, end)
    assert [line for batch in batches for line in batch.lines] == expected
    ends, memory = [], 0
    for line in expected:
        memory += line.memory_bytes
        if memory >= 4000 or line == expected[-1]:
            ends.append((line.end_offset, memory))
            memory = 0
    assert [(batch.end.byte_offset, batch.memory_bytes) for batch in batches] == ends


def test_usual_lines_are_one_part_of_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 1000)
    file = InputFile("lines.jsonl", None, "jsonl", None, path.stat().st_size, str(path))
    (batch,) = read_batches([file], [FileRange(0, 0, None, 1)], None, ReadingOptions(max_document_bytes=1000))
    (block,) = batch.parts
    assert isinstance(block, LineBlock)
    assert block.end_line == 1000


def test_a_line_across_the_end_of_the_buffer_is_in_the_next_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (formats, line_blocks):
        monkeypatch.setattr(module, "READ_BUFFER_BYTES", 1000)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"text": "abc"}\n' * 1000)
    file = InputFile("lines.jsonl", None, "jsonl", None, path.stat().st_size, str(path))
    (batch,) = read_batches([file], [FileRange(0, 0, None, 1)], None, ReadingOptions(max_document_bytes=1000))
    assert all(isinstance(part, LineBlock) for part in batch.parts)
    assert 16 <= len(batch.parts) <= 18
    assert [line.number for line in batch.lines] == list(range(1, 1001))


class Damaged(io.BytesIO):
    """A stream that has an error behind its bytes."""

    def readinto(self, target: Any) -> int:
        size = super().readinto(target)
        if not size:
            raise OSError("damaged")
        return size


def test_lines_before_an_error_of_the_stream_come_first() -> None:
    stream = io.BufferedReader(Damaged(b"a\nb\n \nc\nd"), 1000)  # type: ignore[arg-type]
    parts = read_line_blocks(stream, 0, 0, None, 100, lambda *place: formats._lines(*place, None, 100))
    last_lines: list[int] = []
    with pytest.raises(OSError, match="damaged"):
        last_lines.extend(part.end_line for part in parts)
    assert last_lines[-1] == 4
