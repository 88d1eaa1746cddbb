"""Mutated inputs: whatever the bytes are, preprocess.py accounts for every line or stops with one line that says where.

The expected account is made by the standard library alone.
"""

import bz2
import gzip
import io
import itertools
import json
import lzma
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import preprocess
from pretraining.data.store.manifest import read_manifest
from pretraining.data.tokenize import tokenizer as tokenizers
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError
from pretraining.system import files
from tests.adversarial.drivers.mutations import num_mutations
from tests.conftest import PROJECT_DIR
from tests.unit.data.input.test_reading import zstd
from tests.unit.data.input.test_token_files import some_documents, write_flat, write_megatron

NUM_JSONL, NUM_COMPRESSED, NUM_PARQUET, NUM_TOKENS = map(num_mutations, (1600, 500, 200, 300))
ODD_BYTES = [b"\n", b"\r", b"\r\n", b'"', b"\\", b"\\ud800", b"\x00", b"\xff", b"\xef\xbb\xbf", b"{", b"}", b"null"]
ODD_BYTES += ["é".encode("latin-1"), "東京".encode("utf-16"), "🚆".encode(), b"\\u0000", b"NaN", b"[" * 2000, b"1e999"]
ODD_BYTES += [
    b"</s>",
    b"\xc3",
    b'{"text": null}',
    b'{"text": 5}',
    b'{"text": ""}',
    b"\x1e",
    b" " * 300,
    b"\x85\xe2\x80\xa8",
]


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The content after some bytes were flipped, cut, doubled, moved, or met with odd ones."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        place = chance.randrange(len(changed) + 1)
        length = chance.choice([1, 1, 2, 10, 200])
        kind = chance.choice(["flip", "cut", "double", "insert", "insert", "truncate"])
        if kind == "flip" and place < len(changed):
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del changed[place : place + length]
        elif kind == "double":
            changed[place:place] = changed[place : place + length]
        elif kind == "insert":
            changed[place:place] = chance.choice(ODD_BYTES)
        elif chance.random() < 0.2:
            del changed[place:]
    return bytes(changed) or b"\n"


def expected_documents(content: bytes) -> tuple[dict[int, str], int]:
    """The text of each line that is a document, and the number of lines."""
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    texts = {}
    for number, line in enumerate(lines, start=1):
        raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            text = json.loads(raw.decode("utf-8"))["text"]
            text.encode("utf-8")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IndexError):
            continue
        if isinstance(text, str) and text.strip():
            texts[number] = text
    return texts, len(lines)


@pytest.fixture(autouse=True)
def quick_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tokenizer for all runs, and no waiting for the disk: neither has to do with what is read."""
    tokenizer = load_document_tokenizer(str(PROJECT_DIR / "data/sample/tokenizer"), add_bos=False, backend="auto")
    monkeypatch.setattr(tokenizers, "load_document_tokenizer", lambda *_args, **_options: tokenizer)
    monkeypatch.setattr(files.os, "fsync", lambda _: None)


def zipped(content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        for name in ("a.jsonl", "b.jsonl"):
            members.writestr(name, content)
    return archive.getvalue()


COMPRESSORS = [(gzip.compress, "gz"), (lzma.compress, "xz"), (zstd, "zst"), (bz2.compress, "bz2"), (zipped, "zip")]


def seed_corpus() -> bytes:
    lines = (PROJECT_DIR / "data/sample/news.jsonl").read_bytes().splitlines(keepends=True)[:6]
    return b"".join(line[:300].rsplit(b" ", 1)[0] + b'"}\n' if len(line) > 300 else line for line in lines)


def refusal(path: Path, output_dir: Path) -> str | None:
    """Preprocess `path`; the one line with which it was refused, None when there is a block store."""
    flags = ["--data_files", path, "--block_length", 8, "--split", "8,1,1", "--output_dir", output_dir]
    try:
        preprocess.main([str(word) for word in [*flags, "--max_skipped_fraction", 1, "--num_workers", 1]])
    except UserError as error:
        return str(error)
    return None


def check_accounts(path: Path, content: bytes, output_dir: Path) -> None:
    """Preprocess `path`, whose lines are `content`, and compare every line with the expected account."""
    texts, num_lines = expected_documents(content)
    refused = refusal(path, output_dir)
    assert (refused is None) == bool(texts), refused
    if refused is not None:
        assert "no document is left" in refused
        return
    manifest = read_manifest(output_dir, flag="")
    rows = pq.read_table(output_dir / "documents").to_pylist()
    assert {row["line"]: row["num_text_bytes"] for row in rows} == {n: len(t.encode()) for n, t in texts.items()}
    skipped = [json.loads(line) for line in (output_dir / "skipped.jsonl").read_bytes().splitlines()]
    listed = [line["line"] + more for line in skipped for more in range(line.get("num_lines", 1))]
    assert sorted([row["line"] for row in rows] + listed) == list(range(1, num_lines + 1))
    assert (manifest.num_lines, manifest.num_documents) == (num_lines, len(texts))
    lines = content.split(b"\n")
    starts = [0, *itertools.accumulate(len(line) + 1 for line in lines)]
    assert all(row["byte_offset"] == starts[row["line"] - 1] for row in rows)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.guarantee("Of mutated JSON lines, each is accounted for.")
def test_mutated_json_lines_are_accounted_for_exactly(
    work: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("tried", NUM_JSONL)
    chance = random.Random(1)
    whole = seed_corpus()
    assert len(expected_documents(whole)[0]) == 6
    for number in range(NUM_JSONL):
        path, output_dir = work / "news.jsonl", work / "blocks"
        content = mutated(whole, chance)
        path.write_bytes(content)
        try:
            check_accounts(path, content, output_dir)
        except BaseException:
            print(f"input {number}: {content!r}")  # noqa: T201 - what to reproduce it with
            raise
        shutil.rmtree(output_dir, ignore_errors=True)
        shutil.rmtree(work / "blocks.partial", ignore_errors=True)


@pytest.mark.guarantee("A damaged compressed file is reported with the place of the damage.")
def test_mutated_compressed_files_are_read_or_refused_with_the_place(
    work: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("tried", NUM_COMPRESSED)
    chance = random.Random(2)
    num_refused = 0
    for number in range(NUM_COMPRESSED):
        compress, suffix = chance.choice(COMPRESSORS)
        path, output_dir = work / f"news.jsonl.{suffix}", work / "blocks"
        path.write_bytes(mutated(compress(seed_corpus() * 20), chance))
        refused = refusal(path, output_dir)
        if refused is not None:
            num_refused += 1
            assert str(path) in refused or "no document is left" in refused, number
            assert "\n" not in refused
        for name in ("blocks", "blocks.partial"):
            shutil.rmtree(work / name, ignore_errors=True)
    assert num_refused > NUM_COMPRESSED / 2


def test_mutated_parquet_files_are_read_or_refused_with_the_place(
    work: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("tried", NUM_PARQUET)
    chance = random.Random(3)
    pq.write_table(pa.table({"text": [f"story {n} " * 20 for n in range(300)]}), work / "whole.parquet", 100)
    whole = (work / "whole.parquet").read_bytes()
    for number in range(NUM_PARQUET):
        path, output_dir = work / "news.parquet", work / "blocks"
        path.write_bytes(mutated(whole, chance))
        refused = refusal(path, output_dir)
        assert refused is None or str(path) in refused or "no document is left" in refused, number
        for name in ("blocks", "blocks.partial"):
            shutil.rmtree(work / name, ignore_errors=True)


def test_mutated_token_files_are_read_or_refused_with_the_file(
    work: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("tried", NUM_TOKENS)
    chance = random.Random(4)
    documents = some_documents(40)
    path, index, output_dir = work / "a.bin", work / "a.idx", work / "blocks"
    num_refused = 0
    for number in range(NUM_TOKENS):
        if number % 3 == 0:
            index.unlink(missing_ok=True)
            write_flat(path, documents, magic=chance.choice([0, 20240520]))
            path.write_bytes(mutated(path.read_bytes(), chance))
        else:
            write_megatron(path, documents)
            changed = chance.choice([path, index])
            changed.write_bytes(mutated(changed.read_bytes(), chance))
        refused = refusal(path, output_dir)
        num_refused += refused is not None
        assert refused is None or str(path) in refused or "no document is left" in refused, number
        assert refused is None or "\n" not in refused
        if refused is None:
            manifest = read_manifest(output_dir, flag="")
            assert manifest.num_lines == manifest.num_documents + sum(manifest.skipped_lines.values())
        for name in ("blocks", "blocks.partial"):
            shutil.rmtree(work / name, ignore_errors=True)
    assert NUM_TOKENS / 4 < num_refused < NUM_TOKENS
