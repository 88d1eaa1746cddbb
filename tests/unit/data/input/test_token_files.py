"""Documents of token ids come out as they were written by the published layouts, from any of them on."""

import itertools
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pretraining.data.input import reading, token_files
from pretraining.data.input.documents import Document, ReadingOptions, SkippedLine
from pretraining.data.input.find import find_inputs
from pretraining.data.input.reading import parse_lines, read_batches
from pretraining.data.input.slices import cut_slices
from pretraining.errors import UserError

END = 2
OPTIONS = ReadingOptions(2000, vocab_size=1000, eos_token_id=END)
MEGATRON_CODES = {"u1": 1, "i1": 2, "<i2": 3, "<i4": 4, "<i8": 5, "<u2": 8}


def write_megatron(
    path: Path, documents: Sequence[Sequence[int]], *, dtype: str = "<u2", num_sentences: int = 1
) -> Path:
    """Two files as megatron/core/datasets/indexed_dataset.py writes them, each document in so many sequences."""
    sequences = [part.tolist() for document in documents for part in np.array_split(np.array(document), num_sentences)]
    lengths = np.array([len(sequence) for sequence in sequences], "<i4")
    path.write_bytes(np.array(list(itertools.chain(*sequences)), dtype).tobytes())
    offsets = (np.cumsum(lengths, dtype="<i8") - lengths) * np.dtype(dtype).itemsize
    bounds = np.arange(len(documents) + 1, dtype="<i8") * num_sentences
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, MEGATRON_CODES[dtype], len(lengths), len(bounds))
    path.with_suffix(".idx").write_bytes(
        header + lengths.tobytes() + offsets.astype("<i8").tobytes() + bounds.tobytes()
    )
    return path


def write_flat(path: Path, documents: Sequence[Sequence[int]], *, eos_first: bool = False, magic: int = 0) -> Path:
    """The ids of documents with EOS after each (nanoGPT), or before each and a header (llm.c)."""
    parts = [[END, *d] if eos_first else [*d, END] for d in documents]
    ids = np.array(list(itertools.chain(*parts)), "<u4" if magic == 20240801 else "<u2")
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(ids)
    path.write_bytes((header.tobytes() if magic else b"") + ids.tobytes())
    return path


def some_documents(number: int, *, longest: int = 90) -> list[list[int]]:
    """Documents of 1 to `longest` ids, none of which is EOS."""
    generator = np.random.default_rng(number)
    lengths = generator.integers(1, longest + 1, number)
    return [generator.integers(3, 1000, length).tolist() for length in lengths]


def read_all(paths: Sequence[Path], *, num_slices: int = 1) -> list[Document | SkippedLine]:
    files = find_inputs([str(path) for path in paths], takes_tokens=True)
    slices = cut_slices(files, num_slices)
    batches = [batch for ranges in slices for batch in read_batches(files, ranges, None, OPTIONS)]
    return [parsed for batch in batches for _, parsed in parse_lines(batch, OPTIONS)]


def ids_of(parsed: Sequence[Document | SkippedLine]) -> list[list[int]]:
    return [document.ids.tolist() for document in parsed if isinstance(document, Document) and document.ids is not None]


@pytest.mark.parametrize("num_slices", [1, 2, 7, 64])
@pytest.mark.parametrize(("dtype", "num_sentences"), [("<u2", 1), ("<i4", 3), ("<i8", 1), ("<i2", 2)])
def test_documents_of_megatron(tmp_path: Path, dtype: str, num_sentences: int, num_slices: int) -> None:
    documents = some_documents(100)
    path = write_megatron(tmp_path / "a.bin", documents, dtype=dtype, num_sentences=num_sentences)
    parsed = read_all([path], num_slices=num_slices)
    assert ids_of(parsed) == documents
    assert [document.line for document in parsed if isinstance(document, Document)] == list(range(1, 101))
    whole = np.frombuffer(path.read_bytes(), dtype)
    for document in parsed:
        assert isinstance(document, Document)
        assert document.ids is not None
        start = document.byte_offset // whole.itemsize
        assert np.array_equal(whole[start : start + len(document.ids)], document.ids)


@pytest.mark.parametrize("eos_first", [False, True])
@pytest.mark.parametrize("magic", [0, *token_files.HEADER_DTYPES])
@pytest.mark.parametrize("read_bytes", [64, 4 << 20])
def test_documents_between_the_eos_of_a_flat_file(
    tmp_path: Path, eos_first: bool, magic: int, read_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "READ_BYTES", read_bytes)
    documents = some_documents(100)
    path = write_flat(tmp_path / "train.bin", documents, eos_first=eos_first, magic=magic)
    parsed = read_all([path], num_slices=3)
    assert ids_of(parsed) == documents
    assert len(parsed) == len(documents), "the EOS before the first document is not an empty one"


def test_an_eos_at_the_end_is_not_doubled_and_none_is_missed(tmp_path: Path) -> None:
    """Megatron writes it with --append-eod; without, or after a document that was cut, there is none."""
    documents = [[5, 6, END], [7], [8, END, 9, END], [END], []]
    parsed = read_all([write_megatron(tmp_path / "a.bin", documents)])
    assert ids_of(parsed) == [[5, 6], [7], [8, END, 9]]
    assert [line.reason for line in parsed if isinstance(line, SkippedLine)] == ["empty_text", "empty_text"]


@pytest.mark.parametrize("kind", ["megatron", "flat"])
def test_reading_goes_on_after_any_batch_with_the_same_batches(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BATCH_BYTES", 5000)
    documents = some_documents(60)
    write = write_megatron if kind == "megatron" else write_flat
    paths = [write(tmp_path / "a.bin", documents), write(tmp_path / "b.bin", documents[:9])]
    files = find_inputs([str(path) for path in paths], takes_tokens=True)
    (ranges,) = cut_slices(files, 1)

    def shown(batches: Sequence[reading.RawBatch]) -> list[tuple[object, ...]]:
        lines = ((batch, raw) for batch in batches for raw in batch.lines)
        return [(b.file.path, raw.number, raw.byte_offset, np.asarray(raw.content).tolist()) for b, raw in lines]

    batches = list(read_batches(files, ranges, None, OPTIONS))
    assert len(batches) > 5
    for number, batch in enumerate(batches):
        assert shown(list(read_batches(files, ranges, batch.end, OPTIONS))) == shown(batches[number + 1 :])
    assert sum(batch.num_file_bytes for batch in batches) == sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("kind", ["megatron", "flat"])
def test_a_document_that_is_too_large_is_skipped_and_those_after_it_are_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "READ_BYTES", 512)
    write = write_megatron if kind == "megatron" else write_flat
    parsed = read_all([write(tmp_path / "a.bin", [[7] * 10, [8] * 5000, [9] * 900])])
    assert ids_of(parsed) == [[7] * 10, [9] * 900]
    assert parsed[1] == SkippedLine(2, "too_large", "ids 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8 8")


@pytest.mark.parametrize(("wrong", "dtype"), [(1000, "<u2"), (-1, "<i4"), (1 << 40, "<i8")])
def test_an_id_that_the_tokenizer_does_not_have_ends_the_run(tmp_path: Path, wrong: int, dtype: str) -> None:
    path = write_megatron(tmp_path / "a.bin", [[5], [6, wrong, 7]], dtype=dtype)
    message = rf"a\.bin: document 2 has the token id {wrong}, and the tokenizer 0 to 999; use the --tokenizer that made"
    with pytest.raises(UserError, match=message):
        read_all([path])


def test_ids_of_megatron_without_index_are_not_taken_for_those_of_nanogpt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = write_megatron(tmp_path / "wide.bin", [[7, 150_000, 9] * 30], dtype="<i4")
    narrow = write_megatron(tmp_path / "narrow.bin", [[5, 6], [7]])
    for path in (wide, narrow):
        path.with_suffix(".idx").unlink()
    with pytest.raises(UserError, match=r"has ids of 4 bytes, by its content; copy its index wide\.idx beside"):
        find_inputs([str(wide)], takes_tokens=True)
    assert ids_of(read_all([narrow])) == [[5, 6, 7]]
    assert "narrow.bin: has no EOS (id 2), so it is one document" in caplog.text
    caplog.clear()
    read_all([write_flat(tmp_path / "flat.bin", some_documents(3))])
    assert not caplog.text


def test_a_bad_flat_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "odd.bin").write_bytes(b"\1\0\2")
    short = write_flat(tmp_path / "short.bin", [[5, 6]], magic=20240520)
    short.write_bytes(short.read_bytes()[:-2])
    (tmp_path / "a.bin.gz").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        find_inputs([str(tmp_path / name) for name in ("odd.bin", "short.bin", "a.bin.gz")], takes_tokens=True)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "is not a file of 2-byte token ids, by its size; pass the file of another tool",
        "has 2 token ids, and 3 by its header; copy it again",
        "files of token ids are not read compressed; decompress it",
    ]
