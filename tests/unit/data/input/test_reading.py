"""Lines of every format, with the places they stand, from any of them on."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretraining.data.input import reading
from pretraining.data.input.documents import Document, ReadingOptions, SkippedLine
from pretraining.data.input.find import find_inputs
from pretraining.data.input.reading import RawBatch, parse_lines, read_batches, read_documents
from pretraining.data.input.slices import cut_slices
from pretraining.errors import UserError

OPTIONS = ReadingOptions(1 << 20)
PARAGRAPHS = ReadingOptions(1 << 20, split_text_files=True)


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd, ".xz": lzma.compress}
COMPRESS[".bz2"] = bz2.compress


def documents_of(path: Path, options: ReadingOptions = OPTIONS) -> list[Document | SkippedLine]:
    return list(read_documents(find_inputs([str(path)]), options))


def stories(number: int) -> list[dict[str, str]]:
    return [{"text": f"  story {n} é\n" * (n % 7 + 1), "source": "wire"} for n in range(number)]


def jsonl(records: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


@pytest.mark.parametrize("suffix", COMPRESS)
def test_every_line_comes_out_once_with_the_place_it_stands(tmp_path: Path, suffix: str) -> None:
    content = jsonl(stories(200))
    path = tmp_path / f"news.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](content))
    documents = documents_of(path)
    assert len(documents) == 200
    for number, document in enumerate(documents):
        assert isinstance(document, Document)
        assert document.line == number + 1
        line = content[document.byte_offset :].split(b"\n")[0]
        assert json.loads(line)["text"] == document.text == stories(200)[number]["text"]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz", ".bz2"])
def test_files_of_several_compressed_members_are_read_to_the_end(tmp_path: Path, suffix: str) -> None:
    parts = [COMPRESS[suffix](jsonl(stories(50))) for _ in range(3)]
    path = tmp_path / f"news.jsonl{suffix}"
    path.write_bytes(b"".join(parts))
    assert len(documents_of(path)) == 150


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz", ".bz2"])
@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_a_damaged_compressed_file_says_where(tmp_path: Path, suffix: str, damage: str) -> None:
    whole = bytearray(COMPRESS[suffix](jsonl(stories(5000)) + bytes(range(256)) * 40))
    if damage == "cut":
        del whole[len(whole) // 2 :]
    else:
        whole[6:206] = b"\xff" * 200  # the first block's header: these frames of zstd have no checksum
    path = tmp_path / f"news.jsonl{suffix}"
    path.write_bytes(whole)
    with pytest.raises(UserError, match=rf"news\.jsonl\{suffix}: is truncated or corrupt after line [\d,]+ \("):
        documents_of(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz", ".bz2"])
def test_a_damaged_second_member_is_not_taken_for_the_end(tmp_path: Path, suffix: str) -> None:
    member = COMPRESS[suffix](jsonl(stories(50)))
    path = tmp_path / f"news.jsonl{suffix}"
    path.write_bytes(member + member[4:])
    with pytest.raises(UserError, match="is truncated or corrupt after line"):
        documents_of(path)


def test_padding_between_streams_of_xz_is_legal(tmp_path: Path) -> None:
    stream = lzma.compress(jsonl(stories(50)))
    path = tmp_path / "news.jsonl.xz"
    path.write_bytes(stream + bytes(8) + stream + bytes(4))
    assert len(documents_of(path)) == 100


def test_a_parquet_row_that_is_not_utf8_is_skipped_alone(tmp_path: Path) -> None:
    text = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary()).view(pa.string())
    path = tmp_path / "news.parquet"
    pq.write_table(pa.table({"text": text}), path)
    one, bad, three = documents_of(path)
    assert isinstance(bad, SkippedLine)
    assert (bad.line, bad.reason) == (2, "invalid_utf8")
    assert isinstance(one, Document)
    assert isinstance(three, Document)
    assert (one.text, three.text) == ("one", "three")


def test_the_largest_document_is_counted_in_bytes_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "news.parquet"
    pq.write_table(pa.table({"m": [{"t": "東京" * 300}, {"t": "short"}]}), path)
    options = ReadingOptions(1000, "m.t")
    huge, short = documents_of(path, options)
    assert isinstance(huge, SkippedLine)
    assert huge.reason == "too_large"
    assert isinstance(short, Document)


def test_millions_of_blank_lines_come_in_batches(tmp_path: Path) -> None:
    path = tmp_path / "blank.jsonl"
    path.write_bytes(b"\n" * 100_000)
    files = find_inputs([str(path)])
    (ranges,) = cut_slices(files, 1)
    assert max(len(list(batch.lines)) for batch in read_batches(files, ranges, None, OPTIONS)) < 5000


@pytest.mark.parametrize("num_slices", [1, 2, 5])
def test_an_empty_file_at_the_end_of_a_folder(tmp_path: Path, num_slices: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(stories(5)))
    (tmp_path / "z.jsonl").touch()
    files = find_inputs([str(tmp_path)])
    batches = [b for ranges in cut_slices(files, num_slices) for b in read_batches(files, ranges, None, OPTIONS)]
    assert sum(len(list(batch.lines)) for batch in batches) == 5


def test_a_damaged_parquet_file_says_where(tmp_path: Path) -> None:
    path = tmp_path / "news.parquet"
    pq.write_table(pa.Table.from_pylist(stories(1000)), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"news\.parquet: is truncated or corrupt after row 0 \("):
        documents_of(path)


@pytest.mark.parametrize("row_group_size", [7, 1000])
def test_rows_of_parquet(tmp_path: Path, row_group_size: int) -> None:
    path = tmp_path / "news.parquet"
    records = [*stories(100), {"text": None, "source": None}]
    pq.write_table(pa.Table.from_pylist(records).append_column("n", pa.array(range(101))), path, row_group_size)
    found = documents_of(path)
    assert [d.text for d in found[:-1] if isinstance(d, Document)] == [record["text"] for record in stories(100)]
    assert isinstance(found[-1], SkippedLine)
    assert (found[-1].line, found[-1].reason) == (101, "text_is_null")


def test_a_parquet_file_without_the_column_and_one_with_a_nested_one(tmp_path: Path) -> None:
    path = tmp_path / "news.parquet"
    pq.write_table(pa.table({"body": [{"text": "a"}, {"text": "b"}]}), path)
    assert {line.reason for line in documents_of(path) if isinstance(line, SkippedLine)} == {"no_text_field"}
    nested = ReadingOptions(100, "body.text")
    assert [d.text for d in documents_of(path, nested) if isinstance(d, Document)] == ["a", "b"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_binary_columns_of_parquet_are_text(tmp_path: Path, kind: pa.DataType) -> None:
    """fastparquet writes text so unless it is told otherwise."""
    texts = ["one é".encode(), b"\xff\xfe", None, b"x" * 3000, b"last"]
    columns = {"text": pa.array(texts, kind), "source": pa.array([b"wire"] * 5, kind)}
    pq.write_table(pa.table(columns), tmp_path / "news.parquet")
    one, bad, null, large, last = documents_of(tmp_path / "news.parquet", ReadingOptions(1000))
    assert one == Document("one é", "wire", 1, 0)
    assert [line.reason for line in (bad, null, large) if isinstance(line, SkippedLine)] == [
        "invalid_utf8", "text_is_null", "too_large",
    ]  # fmt: skip
    assert isinstance(large, SkippedLine)
    assert large.first_bytes.startswith("xxx") or "xxx" in large.first_bytes
    assert isinstance(last, Document)


def test_columns_are_named_where_that_of_the_text_is_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"], "id": [1]}), tmp_path / "news.parquet")
    (line,) = documents_of(tmp_path / "news.parquet")
    assert line == SkippedLine(1, "no_text_field", "the columns are content, id")


def test_a_text_file_is_one_document_or_its_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "book.v1.txt"
    path.write_bytes("\ufeffone\r\nstill one\n\n \n\ntwo é\n".encode())
    (book,) = documents_of(path)
    assert isinstance(book, Document)
    assert book.text == "one\r\nstill one\n\n \n\ntwo é\n"
    first, second = documents_of(path, PARAGRAPHS)
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert (first.text, second.text) == ("one\r\nstill one\n", "two é\n")
    assert (first.line, second.line) == (1, 6)
    assert path.read_bytes()[second.byte_offset :] == "two é\n".encode()


@pytest.mark.parametrize("name", ["huge.jsonl", "huge.jsonl.gz", "huge.txt", "huge.parquet"])
def test_a_line_that_is_too_large_is_skipped_and_those_after_it_are_read(tmp_path: Path, name: str) -> None:
    options = ReadingOptions(1000, split_text_files=True)
    texts = ["first", "x" * 5000, "last"]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": texts}), path)
    elif name.endswith("txt"):
        path.write_text("\n\n".join(texts))
    else:
        path.write_bytes(COMPRESS[path.suffix if path.suffix == ".gz" else ""](jsonl([{"text": t} for t in texts])))
    first, huge, last = documents_of(path, options)
    assert isinstance(first, Document)
    assert isinstance(last, Document)
    assert isinstance(huge, SkippedLine)
    assert huge.reason == "too_large"
    assert "xxx" in huge.first_bytes
    assert (first.text.strip(), last.text.strip()) == ("first", "last")


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.jsonl.xz", "a.jsonl.bz2", "a.txt", "a.parquet"]
)
def test_reading_goes_on_after_any_batch_with_the_same_batches(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH_BYTES", 400)
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(stories(60)), path, row_group_size=13)
    else:
        content = "\n\n\n".join(f"story {n}\nof lines" * (n % 5 + 1) for n in range(60)).encode()
        path.write_bytes(
            content if name.endswith("txt") else COMPRESS[path.suffix.replace(".jsonl", "")](jsonl(stories(60)))
        )
    other = tmp_path / "b.jsonl"
    other.write_bytes(jsonl(stories(20)))
    files = find_inputs([str(path), str(other)])
    (ranges,) = cut_slices(files, 1)

    def shown(batch: RawBatch) -> list[tuple[object, ...]]:
        return [(batch.file.path, raw.number, raw.byte_offset, parsed) for raw, parsed in parse_lines(batch, OPTIONS)]

    batches = list(read_batches(files, ranges, None, PARAGRAPHS))
    assert len(batches) > 5
    for number, batch in enumerate(batches):
        rest = list(read_batches(files, ranges, batch.end, PARAGRAPHS))
        assert [shown(b) for b in rest] == [shown(b) for b in batches[number + 1 :]]


@pytest.mark.parametrize("num_slices", [1, 2, 3, 7, 64])
def test_slices_have_every_line_once_in_order_with_its_number(tmp_path: Path, num_slices: int) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(stories(101)))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(stories(30))))
    (tmp_path / "c.jsonl").write_bytes(jsonl(stories(5)) + b'{"text": "no newline"}')
    files = find_inputs([str(tmp_path)])
    slices = cut_slices(files, num_slices)
    assert len(slices) == num_slices
    lines = [
        (batch.file.path, raw.number, raw.byte_offset, raw.content)
        for ranges in slices
        for batch in read_batches(files, ranges, None, OPTIONS)
        for raw in batch.lines
    ]
    (whole,) = cut_slices(files, 1)
    assert lines == [
        (batch.file.path, raw.number, raw.byte_offset, raw.content)
        for batch in read_batches(files, whole, None, OPTIONS)
        for raw in batch.lines
    ]
    if num_slices in (2, 3):
        assert all(slices), "none is empty"
