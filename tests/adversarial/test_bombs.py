"""Small files that expand without bound: memory, disk and time of preprocess.py stay bounded, and every line counts.

Peaks are those of child processes, above what the same process takes for one small document.
"""

import bz2
import gzip
import json
import lzma
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretraining.data.build import checks, progress
from pretraining.data.input import reading
from pretraining.data.input.documents import Document, ReadingOptions, SkippedLine
from pretraining.data.input.find import find_inputs
from pretraining.data.input.formats import BLANK_BYTES
from pretraining.data.input.reading import Position, read_batches, read_documents
from pretraining.data.input.slices import cut_slices
from pretraining.data.store.manifest import read_manifest
from pretraining.errors import UserError
from tests.conftest import Done, python, run
from tests.unit.data.input.test_reading import zstd

MAX_MEGABYTES = 400  # 200 of it are Python and its libraries; before, these files took up to 4 GB
MOST_SKIPPED_BYTES = 16 << 20
GOOD = b'{"text": "a document of some words"}\n'
OPTIONS = ReadingOptions(6 << 20)
# A child's peak begins with the memory of the process that it is forked from: with a small one, not that of the tests.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
BLANK = [b"\n", b" \r\n", b"\t\x0b\x0c\n", b"\n \n"]


def preprocess_bounded(tmp_path: Path, data: Path, *flags: object) -> tuple[Done, float]:
    """A run of preprocess.py over `data`, and the peak of its memory in MB."""
    words = ["--data_files", data, "--block_length", 4, "--split", "1,0,0", "--output_dir", tmp_path / "blocks"]
    done = run(sys.executable, "-c", MEASURED, *python("preprocess.py", *words, "--num_workers", 1, *flags))
    *_, peak = done.stdout.split()
    return done, int(peak) / 1024


def listed_bytes(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in tmp_path.rglob("skipped*.jsonl"))


def xz_of_dictionary(content: bytes, size_code: int) -> bytes:
    """A stream whose header asks for a dictionary of 4 GB (40) in place of its own."""
    stream = bytearray(lzma.compress(content))
    assert stream[14:17] == b"\x21\x01\x16", "LZMA2 and its one byte of properties"
    stream[16] = size_code
    stream[20:24] = struct.pack("<I", zlib.crc32(stream[12:20]))
    return bytes(stream)


def zstd_of_window(content: bytes, log: int) -> bytes:
    """A frame of one raw block whose header asks for a window of 2^log bytes."""
    block = struct.pack("<I", len(content) << 3 | 1)[:3]
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + block + content


def parquet_of_one_text(path: Path, megabytes: int, num_rows: int) -> None:
    """Rows that are all the same large text, which the file has once, compressed."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows, pa.int32()), pa.array(["x" * (megabytes << 20)]))
    pq.write_table(pa.table({"text": text}), path, compression="zstd", store_schema=False)


def endless_gzip(path: Path, piece: bytes, megabytes: int) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(megabytes):
            file.write(piece * ((1 << 20) // len(piece)))


@pytest.mark.parametrize(
    "suffix", ["gz", *(pytest.param(suffix, marks=pytest.mark.long) for suffix in ("xz", "zst", "bz2"))]
)
@pytest.mark.guarantee("Compressed bombs stay within memory, disk and time.")
def test_blank_lines_take_neither_disk_nor_time(tmp_path: Path, suffix: str) -> None:
    """256 million of them, in 250 KB or less; the one document at the end is found."""
    compressors = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstd, "bz2": bz2.compress}
    compress: Callable[[bytes], bytes] = compressors[suffix]
    path = tmp_path / f"blank.jsonl.{suffix}"
    path.write_bytes(compress(GOOD) + compress(b"\n" * (32 << 20)) * 8 + compress(GOOD))
    done, megabytes = preprocess_bounded(tmp_path, path, "--max_skipped_fraction", 1)
    assert done.returncode == 0, done.output
    assert megabytes < MAX_MEGABYTES
    manifest = read_manifest(tmp_path / "blocks", flag="")
    assert manifest.skipped_lines == {"blank_line": 8 * (32 << 20)}
    assert manifest.num_lines == 2 + 8 * (32 << 20)
    assert listed_bytes(tmp_path) < 1 << 20


@pytest.mark.long  # test_blank_lines_take_neither_disk_nor_time
def test_a_zip_archive_of_blank_lines_takes_neither_disk_nor_time(tmp_path: Path) -> None:
    """256 million of them in each of two files."""
    path = tmp_path / "blank.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.jsonl", "b.jsonl"):
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(GOOD)
                for _ in range(8):
                    file.write(b"\n" * (32 << 20))
                file.write(GOOD)
    assert path.stat().st_size < 1 << 20
    done, megabytes = preprocess_bounded(tmp_path, path, "--max_skipped_fraction", 1)
    assert done.returncode == 0, done.output
    assert megabytes < MAX_MEGABYTES
    assert read_manifest(tmp_path / "blocks", flag="").num_lines == 2 * (2 + 8 * (32 << 20))
    assert listed_bytes(tmp_path) < 1 << 20


def test_nothing_but_blank_lines_is_enough_to_judge(tmp_path: Path) -> None:
    path = tmp_path / "blank.jsonl.gz"
    endless_gzip(path, b"\n", 64)
    done, _ = preprocess_bounded(tmp_path, path)
    assert done.returncode == 2
    assert "consecutive lines; they are blank; " in done.errors[0]
    num_lines = int(done.errors[0].split("no document in ")[1].split(" consecutive lines")[0].replace(",", ""))
    assert num_lines < 24 << 20, "it did not read them all"


@pytest.mark.parametrize(
    "content",
    [pytest.param(b"x\n", marks=pytest.mark.long, id="garbage"), pytest.param(b'{"text": ""}\n', id="empty")],
)
def test_bad_lines_are_listed_up_to_a_limit_and_then_counted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD + content * 60_000 + GOOD))
    done, megabytes = preprocess_bounded(tmp_path, path, "--max_skipped_fraction", 1, "--tokens_per_shard", 1)
    assert done.returncode == 0, done.output
    assert megabytes < MAX_MEGABYTES
    ((reason, count),) = read_manifest(tmp_path / "blocks", flag="").skipped_lines.items()
    assert count == 60_000
    records = [json.loads(line) for line in (tmp_path / "blocks/skipped.jsonl").read_text().splitlines()]
    assert [record["line"] for record in records[:-1]] == list(range(2, 2 + progress.MAX_LISTED))
    assert records[-1] == {"file": str(path), "reason": reason, "num_lines_not_listed": count - progress.MAX_LISTED}
    assert listed_bytes(tmp_path) < MOST_SKIPPED_BYTES


def test_bad_lines_without_end_after_a_document_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import preprocess

    monkeypatch.setattr(checks, "ENOUGH_LINES", 20_000)
    monkeypatch.setattr(reading, "ENOUGH_LINES", 20_000)
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 10 + b"x\n" * 50_000 + GOOD))
    flags = ["--data_files", str(path), "--block_length", "4", "--output_dir", str(tmp_path / "blocks")]
    with pytest.raises(UserError, match=r"no document in 2\d,\d\d\d consecutive lines; .*:11: not json"):
        preprocess.main(flags)
    with pytest.raises(UserError, match="consecutive lines up to line "):
        list(read_documents(find_inputs([str(path)]), OPTIONS))


@pytest.mark.parametrize(
    "name",
    ["one_line.jsonl", *(pytest.param(name, marks=pytest.mark.long) for name in ("one_text.txt", "paragraphs.txt"))],
)
def test_an_endless_line_or_text_is_read_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"{name}.gz"
    endless_gzip(path, b" \n" if name == "one_text.txt" else b"x", 256)
    flags = ["--split_text_files"] if name == "paragraphs.txt" else []
    done, megabytes = preprocess_bounded(tmp_path, path, *flags)
    assert done.returncode == 2
    assert "too large" in done.errors[0]
    assert megabytes < MAX_MEGABYTES


def test_headers_of_xz_and_zstd_that_ask_for_gigabytes_are_refused(tmp_path: Path) -> None:
    for name, content in {
        "big.jsonl.xz": xz_of_dictionary(GOOD, 40),
        "second.jsonl.xz": lzma.compress(GOOD) + xz_of_dictionary(GOOD, 40),
        "big.jsonl.zst": zstd_of_window(GOOD, 31),
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        done, megabytes = preprocess_bounded(tmp_path, path)
        assert done.returncode == 2
        assert "it expands more than text does" in done.errors[0], done.output
        assert megabytes < MAX_MEGABYTES
    assert isinstance(read_one(tmp_path, "ok.jsonl.xz", xz_of_dictionary(GOOD, 24)), Document), "16 MB are usual"
    assert isinstance(read_one(tmp_path, "ok.jsonl.zst", zstd_of_window(GOOD, 20)), Document)


def read_one(tmp_path: Path, name: str, content: bytes) -> Document | SkippedLine:
    (tmp_path / name).write_bytes(content)
    (found,) = read_documents(find_inputs([str(tmp_path / name)]), OPTIONS)
    return found


@pytest.mark.parametrize("megabytes", [pytest.param(30, marks=pytest.mark.long), 64])
def test_rows_of_one_large_dictionary_entry_are_measured_before_they_are_made(tmp_path: Path, megabytes: int) -> None:
    path = tmp_path / "dictionary.parquet"
    parquet_of_one_text(path, megabytes, num_rows=16)
    assert path.stat().st_size < 10_000
    done, peak = preprocess_bounded(tmp_path, path)
    assert done.returncode == 2
    assert "too large" in done.errors[0]
    assert f"('{'x' * 80}')" in done.errors[0]
    assert peak < 200 + 5 * megabytes, "Arrow holds four copies at once, Python none"


def test_a_column_that_expands_to_a_gigabyte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dictionary.parquet"
    parquet_of_one_text(path, 160, num_rows=2)
    done, peak = preprocess_bounded(tmp_path, path)
    assert done.returncode == 2
    assert "text of row group 0 expands" in done.errors[0]
    assert peak < MAX_MEGABYTES


def test_a_footer_that_lies_about_sizes_does_not_hide_the_page(tmp_path: Path) -> None:
    """The footer says 100 bytes, the page's own header says 160 MB."""
    path = tmp_path / "lie.parquet"
    parquet_of_one_text(path, 160, num_rows=2)
    content = path.read_bytes()
    told = varint(2 * pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size)
    lie = b"\xc8\x81" + b"\x80" * (len(told) - 3) + b"\x00"  # 100, zigzag and as long as the truth
    path.write_bytes(content[:100] + content[100:].replace(told, lie))
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size == 100
    done, peak = preprocess_bounded(tmp_path, path)
    assert done.returncode == 2
    assert "text of row group 0 expands" in done.errors[0]
    assert peak < MAX_MEGABYTES


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def test_wraps_within_wraps_are_bad_lines_not_expanded(tmp_path: Path) -> None:
    inner = gzip.compress(b"\n" * (64 << 20), 9)
    for name, content in {"a.jsonl.gz.gz": gzip.compress(inner), "b.parquet.gz": inner, "c.zip": inner}.items():
        path = tmp_path / name
        path.write_bytes(content)
        done, megabytes = preprocess_bounded(tmp_path, path)
        assert done.returncode == 2, done.output
        assert len(done.errors) == 1
        assert megabytes < MAX_MEGABYTES


@pytest.mark.parametrize("blank", BLANK, ids=repr)
@pytest.mark.parametrize("start", [0, 1, 5])
def test_blank_lines_come_together_the_same_way_from_wherever_reading_begins(
    tmp_path: Path, blank: bytes, start: int
) -> None:
    """More than two of the reader's buffers of them, between documents, so that they cross the buffers' ends."""
    content = GOOD + blank * (9 * BLANK_BYTES // len(blank)) + GOOD + blank * 3 + GOOD
    path = tmp_path / "blank.jsonl"
    path.write_bytes(content)
    files = find_inputs([str(path)])
    (ranges,) = cut_slices(files, 1)
    lines = [line for batch in read_batches(files, ranges, None, OPTIONS) for line in batch.lines]
    assert sum(line.end_line - line.number + 1 for line in lines) == content.count(b"\n")
    assert len(lines) < 20
    assert [line.byte_offset for line in lines[1:]] == [line.end_offset for line in lines[:-1]]
    at = Position(0, lines[start].end_offset, lines[start].end_line)
    again = [line for batch in read_batches(files, ranges, at, OPTIONS) for line in batch.lines]
    assert again == lines[start + 1 :]


def test_the_bound_of_these_tests_is_far_above_a_run_of_one_document(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_bytes(GOOD * 5)
    done, megabytes = preprocess_bounded(tmp_path, path)
    assert done.returncode == 0, done.output
    assert 50 < megabytes < MAX_MEGABYTES / 1.5


@pytest.mark.parametrize("kind", ["plain", "large", "dictionary", "view", "of a struct"])
def test_only_the_row_that_is_too_large_is_skipped_however_arrow_holds_it(tmp_path: Path, kind: str) -> None:
    texts = pa.array(["one", "x" * 5000, None, "last"])
    column = {
        "plain": texts,
        "large": texts.cast(pa.large_string()),
        "dictionary": texts.dictionary_encode(),
        "view": texts.cast(pa.string_view()),
        "of a struct": pa.StructArray.from_arrays([texts.dictionary_encode(), texts.is_null()], ["text", "n"]),
    }[kind]
    path = tmp_path / "rows.parquet"
    sources = pa.array(["a" * 900, "b" * 900, "c" * 900, "d" * 900]).dictionary_encode()
    pq.write_table(pa.table({"t": column, "source": sources}), path)
    options = ReadingOptions(1000, "t.text" if "struct" in kind else "t")
    one, large, null, last = read_documents(find_inputs([str(path)]), options)
    assert isinstance(one, Document)
    assert isinstance(last, Document)
    assert (one.text, last.text) == ("one", "last")
    assert isinstance(large, SkippedLine)
    assert isinstance(null, SkippedLine)
    assert (large.reason, null.reason) == ("too_large", "text_is_null")
