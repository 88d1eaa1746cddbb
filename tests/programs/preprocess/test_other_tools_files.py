"""Whole runs of preprocess.py on files of other tools: the same ids as from the text, and the same promises."""

import bz2
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretraining.data.store.manifest import Manifest, read_manifest
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from tests.conftest import PROJECT_DIR, assert_one_error, python, run_fine
from tests.programs.launching import run_forked, run_forked_fine
from tests.unit.data.build.test_partial_store import digests, stories
from tests.unit.data.input.test_token_files import write_flat, write_megatron
from tests.unit.data.tokenize.test_backends import per_text

pytestmark = pytest.mark.launch
SMALL = ["--block_length", 64, "--split", "80,15,5"]
EOS = 2
TRACE = [sys.executable, "-m", "tools.trace"]


def preprocess(output_dir: Path, *flags: object, launcher: tuple[object, ...] = ()) -> Manifest:
    command = python("preprocess.py", *flags, "--output_dir", output_dir)
    if launcher:
        run_fine(*launcher, *command)
    else:
        run_forked_fine(*command)
    return read_manifest(output_dir, flag="")


def token_ids(texts: list[str]) -> list[list[int]]:
    """The ids of texts by the sample tokenizer, without control tokens."""
    tokenizer = load_document_tokenizer(str(PROJECT_DIR / "data/sample/tokenizer"), add_bos=False)
    return [ids[:-1].tolist() for ids in per_text(tokenizer.encode(texts))]


def input_ids(folder: Path) -> dict[str, bytes]:
    """The bytes of the blocks of each split."""
    return {
        split: b"".join(
            np.concatenate([np.from_dlpack(c.flatten()) for c in pq.read_table(path)["input_ids"].chunks]).tobytes()
            for path in sorted((folder / "data").glob(f"{split}-*.parquet"))
        )
        for split in ("train", "validation", "test")
    }


@pytest.fixture(scope="module")
def text_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "news.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in stories()))
    preprocess(folder / "blocks", "--data_files", folder / "news.jsonl", *SMALL)
    return folder / "blocks"


@pytest.mark.guarantee("Token ids of Megatron, nanoGPT and llm.c give the blocks that their text gives.")
def test_ids_of_other_tools_give_the_blocks_of_their_text(text_store: Path, tmp_path: Path) -> None:
    documents = token_ids(stories())
    files = [
        write_megatron(tmp_path / "plain.bin", documents),
        write_megatron(tmp_path / "append_eod.bin", [[*ids, EOS] for ids in documents], dtype="<i4"),
        write_flat(tmp_path / "nanogpt.bin", documents),
        write_flat(tmp_path / "llmc.bin", documents, eos_first=True, magic=20240520),
    ]
    expected = input_ids(text_store)
    assert len(expected["train"]) > 10_000
    columns = ["document_id", "split", "line", "num_text_bytes", "num_tokens"]
    rows = pq.read_table(text_store / "documents", columns=columns).to_pylist()
    for file in files:
        folder = tmp_path / f"blocks_{file.stem}"
        manifest = preprocess(folder, "--data_files", file, *SMALL)
        assert input_ids(folder) == expected, file
        assert manifest.skipped_lines == {}
        assert pq.read_table(folder / "documents", columns=columns).to_pylist() == rows
        sources = [Path(source.path).name for source in manifest.origin.sources]
        assert sources == [file.name, f"{file.stem}.idx"][: 1 + file.with_suffix(".idx").exists()]


@pytest.mark.long  # of text: the test of the same name in test_preprocess.py
def test_the_bytes_depend_neither_on_workers_nor_on_processes(tmp_path: Path) -> None:
    documents = token_ids(stories()) * 20
    write_megatron(tmp_path / "a.bin", documents[:2000])
    write_flat(tmp_path / "b.bin", documents[2000:])
    flags = ["--data_files", tmp_path / "a.bin", tmp_path / "b.bin", *SMALL, "--num_slices", 5]
    flags += ["--tokens_per_shard", 100_000]
    preprocess(tmp_path / "one", *flags, "--num_workers", 1)
    launcher = ("mpirun", "--allow-run-as-root", "--oversubscribe", "-n", 3)
    preprocess(tmp_path / "three", *flags, "--num_workers", 3, launcher=launcher)
    assert digests(tmp_path / "one") == digests(tmp_path / "three")


@pytest.mark.long  # of text: tests/programs/tools/test_trace.py
def test_a_token_is_traced_to_the_document_of_its_file(tmp_path: Path) -> None:
    documents = token_ids(stories())
    file = write_megatron(tmp_path / "news_text_document.bin", documents)
    preprocess(tmp_path / "blocks", "--data_files", f"wire={file}", "--add_bos", *SMALL)
    command = [*TRACE, tmp_path / "blocks", "--block", 20, "--position", 5, "--json"]
    (row,) = [json.loads(line) for line in run_forked_fine(*command).stdout.splitlines()]
    place = row["document"]
    assert (place["file"], place["source"]) == (str(file), "wire")
    assert row["document_text"] == stories()[place["line"] - 1]
    assert place["num_text_bytes"] == len(stories()[place["line"] - 1].encode())
    content = file.read_bytes()
    start = place["byte_offset"]
    assert content[start : start + 20] == np.array(documents[place["line"] - 1][:10], "<u2").tobytes()
    file.write_bytes(content[:start] + b"\5" * (len(content) - start))
    done = run_forked_fine(*command)
    assert "has changed, its text does not have the ids of the block" in done.output


def test_flags_of_text_and_another_tokenizer_are_one_line_each(tmp_path: Path) -> None:
    file = write_megatron(tmp_path / "a.bin", [[70_000, 5]], dtype="<i4")
    flags = ["--data_files", file, "--output_dir", tmp_path / "blocks", "--block_length", 4]
    done = run_forked(
        *python("preprocess.py", *flags, "--min_characters", 5, "--exact_duplicates", "--text_field", "body")
    )
    assert done.returncode == 2
    assert [error.split(": ")[1] for error in done.errors] == ["--min_characters", "--exact_duplicates", "--text_field"]
    assert "has token ids, which are packed as they are; remove the flag, or pass the text" in done.errors[0]
    done = run_forked(*python("preprocess.py", *flags))
    assert_one_error(done, "a.bin: document 1 has the token id 70000", "use the --tokenizer that made the file")
    assert not (tmp_path / "blocks.partial").exists()


def test_text_in_archives_and_binary_columns_gives_the_same_blocks(text_store: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": story}).encode() + b"\n" for story in stories()]
    (tmp_path / "wiki_00.bz2").write_bytes(bz2.compress(b"".join(lines)))
    with zipfile.ZipFile(tmp_path / "news.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("2.jsonl", b"".join(lines[50:]))
        archive.writestr("1.jsonl", b"".join(lines[:50]))
    pq.write_table(pa.table({"text": pa.array([s.encode() for s in stories()])}), tmp_path / "news.parquet")
    for name in ("wiki_00.bz2", "news.zip", "news.parquet"):
        manifest = preprocess(tmp_path / f"blocks_{name}", "--data_files", tmp_path / name, *SMALL, "--num_slices", 1)
        assert input_ids(tmp_path / f"blocks_{name}") == input_ids(text_store)
    assert manifest.num_documents == len(stories())
    command = [*TRACE, tmp_path / "blocks_news.zip", "--block", 200, "--position", 5, "--json"]
    row = json.loads(run_forked_fine(*command).stdout)
    place = row["document"]
    number = place["line"] - 1 + (50 if place["file"].endswith("2.jsonl") else 0)
    assert place["file"].startswith(f"{tmp_path}/news.zip/")
    assert row["document_text"] == stories()[number]


def test_a_wrong_text_field_does_not_block_the_right_one(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": stories(), "id": range(len(stories()))}), tmp_path / "news.parquet")
    flags = ["--data_files", tmp_path / "news.parquet", "--output_dir", tmp_path / "blocks", *SMALL]
    done = run_forked(*python("preprocess.py", *flags))
    assert_one_error(done, "no field text; the columns are content, id;", "use the right --text_field")
    assert not (tmp_path / "blocks.partial").exists()
    run_forked_fine(*python("preprocess.py", *flags, "--text_field", "content"))
