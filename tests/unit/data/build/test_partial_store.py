"""The block store as preprocess.py makes it: complete, exact, the same bytes again, and readable by anyone."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from tokenizers import Tokenizer

from pretraining.data.store.manifest import read_manifest
from tests.conftest import PROJECT_DIR, assert_one_error, python, run, run_fine

SAMPLE = PROJECT_DIR / "data/sample/news.jsonl"


def stories(path: Path = SAMPLE) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def digests(store: Path) -> dict[str, str]:
    paths = [path for path in store.rglob("*") if path.is_file()]
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def rebuilt_documents(store: Path) -> dict[int, list[int]]:
    """Ids of each document, put together from the blocks by their document boundaries alone."""
    documents: dict[int, list[int]] = defaultdict(list)
    for path in sorted(store.glob("data/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            ends = [*row["document_starts"][1:], len(row["input_ids"]) - row["num_padding_tokens"]]
            pieces = zip(row["document_ids"], row["document_starts"], row["document_offsets"], ends, strict=True)
            for document, start, offset, end in pieces:
                assert offset == len(documents[document])
                documents[document] += row["input_ids"][start:end]
    return documents


def check_decodes_back(store: Path, texts: list[str], tokenizer: Tokenizer) -> None:
    table = pq.read_table(store / "documents").to_pylist()
    assert [row["document_id"] for row in table] == list(range(len(texts)))
    documents = rebuilt_documents(store)
    num_whole = 0
    for row, text in zip(table, texts, strict=True):
        ids = documents[row["document_id"]]
        expected = [*tokenizer.encode(text, add_special_tokens=False).ids, 2]
        assert ids == expected[: len(ids)], row
        assert row["num_tokens"] == len(expected)
        assert row["num_text_bytes"] == len(text.encode())
        num_whole += ids == expected
    assert num_whole >= len(texts) - 2 * 3, "only the tail of each split may be cut off"


@pytest.mark.guarantee("Blocks decode back to the documents.")
def test_blocks_decode_back_to_the_documents(sample_store: Path) -> None:
    tokenizer = Tokenizer.from_file(str(sample_store / "tokenizer/tokenizer.json"))
    check_decodes_back(sample_store, stories(), tokenizer)
    whole = [ids for ids in rebuilt_documents(sample_store).values() if ids[-1] == 2]
    assert {tokenizer.decode(ids[:-1]) for ids in whole} <= set(stories())


def test_real_news_decode_back(real_data: Path, tmp_path: Path) -> None:
    flags = ["--data_files", real_data / "news.jsonl", "--tokenizer", real_data / "llama2", "--block_length", 512]
    run_fine(*python("preprocess.py", *flags, "--output_dir", tmp_path / "blocks"))
    tokenizer = Tokenizer.from_file(str(real_data / "llama2/tokenizer.json"))
    tokenizer.encode_special_tokens = True
    check_decodes_back(tmp_path / "blocks", stories(real_data / "news.jsonl"), tokenizer)


@pytest.mark.guarantee("Every document is in exactly one split, and every token is accounted for.")
def test_train_validation_and_test_are_all_documents_each_once(sample_store: Path) -> None:
    rows = pq.read_table(sample_store / "documents").to_pylist()
    manifest = read_manifest(sample_store, flag="")
    assert len(rows) == len(stories()) == manifest.num_documents
    for split, contents in manifest.splits.items():
        own = {row["document_id"] for row in rows if row["split"] == split}
        assert len(own) == contents.num_documents > 0
        blocks = pq.read_table(sample_store / contents.shards[0].path).to_pylist()
        assert {document for block in blocks for document in block["document_ids"]} <= own
        assert contents.num_tokens == sum(row["num_tokens"] for row in rows if row["split"] == split)
        assert contents.num_tokens == contents.num_blocks * 64 + contents.num_tail_tokens


def test_the_manifest_has_size_and_hash_of_every_shard(sample_store: Path) -> None:
    manifest = read_manifest(sample_store, flag="")
    assert "conversations" not in json.loads((sample_store / "manifest.json").read_text()), "only in finetune.py's"
    shards = [shard for split in manifest.splits.values() for shard in split.shards] + manifest.documents
    assert {shard.path for shard in shards} == {
        str(path.relative_to(sample_store)) for path in sample_store.rglob("*.parquet")
    }
    for shard in shards:
        path = sample_store / shard.path
        assert (path.stat().st_size, digests(sample_store)[shard.path]) == (shard.num_bytes, shard.sha256)
    assert manifest.origin.sources[0].sha256 == hashlib.sha256(SAMPLE.read_bytes()).hexdigest()


def test_the_same_input_and_flags_give_the_same_bytes(sample_store: Path, tmp_path: Path) -> None:
    flags = ["--block_length", 64, "--split", "90,5,5", "--output_dir", tmp_path / "again"]
    run_fine(*python("preprocess.py", *flags), env={"RAYON_NUM_THREADS": "1"})
    assert digests(tmp_path / "again") == digests(sample_store)


def test_load_dataset_opens_it_with_no_code_of_ours(sample_store: Path, tmp_path: Path) -> None:
    blocks = load_dataset(str(sample_store), cache_dir=tmp_path)
    assert set(blocks) == {"train", "validation", "test"}
    assert blocks["train"].features["input_ids"].length == 64
    assert blocks["train"].features["input_ids"].feature.dtype == "uint16"
    documents = load_dataset(str(sample_store), "documents", split="documents", cache_dir=tmp_path)
    assert documents[0]["source"] in {"world", "business", "science", "sport", "local"}
    streamed = next(iter(load_dataset(str(sample_store), split="train", streaming=True)))
    assert streamed["input_ids"] == blocks["train"][0]["input_ids"]


def test_bos_is_put_before_each_document_when_asked(tmp_path: Path) -> None:
    run_fine(*python("preprocess.py", "--block_length", 64, "--add_bos", "--output_dir", tmp_path / "blocks"))
    documents = rebuilt_documents(tmp_path / "blocks")
    assert all(ids[0] == 1 for ids in documents.values() if ids)
    rules = json.loads((tmp_path / "blocks/manifest.json").read_text())["origin"]["token_rules"]
    assert rules == {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.guarantee("Every line is accounted for.")
def test_skipped_lines_are_counted_and_listed(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    good = SAMPLE.read_bytes().splitlines(keepends=True)
    data.write_bytes(b"".join([*good[:5], b"not json\n", b"\n", *good[5:10], b'{"body": 1}\n', b'{"text": "\xff"}\n']))
    flags = ["--data_files", data, "--block_length", 64, "--output_dir", tmp_path / "blocks"]
    done = run_fine(*python("preprocess.py", *flags, "--max_skipped_fraction", 0.5))
    manifest = read_manifest(tmp_path / "blocks", flag="")
    assert manifest.skipped_lines == {"blank_line": 1, "invalid_utf8": 1, "no_text_field": 1, "not_json": 1}
    assert manifest.num_lines == 14 == manifest.num_documents + 4
    listed = [json.loads(line) for line in (tmp_path / "blocks/skipped.jsonl").read_text().splitlines()]
    assert [(line["line"], line["reason"]) for line in listed] == [
        (6, "not_json"), (7, "blank_line"), (13, "no_text_field"), (14, "invalid_utf8"),
    ]  # fmt: skip
    assert "skipped" in done.stderr


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{not json\n", "not json"),
        (b'{"body": "x"}\n', "no field text; the fields are: body;"),
        (b'{"text": 7}\n', "text not a string"),
        (b'{"text": "\xff"}\n', "invalid utf8"),
    ],
)
def test_too_many_bad_lines_make_no_store(tmp_path: Path, line: bytes, reason: str) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(b'{"text": "good"}\n' + line)
    done = run(*python("preprocess.py", "--data_files", data, "--block_length", 2, "--output_dir", tmp_path / "blocks"))
    assert_one_error(done, f"{data}:2: {reason}", "--max_skipped_fraction 0.01", "fix them", "blocks.partial first")
    assert not (tmp_path / "blocks").exists()
    more = ["--max_skipped_fraction", 0.5, "--split", "1,0,0"]
    done = run(
        *python("preprocess.py", "--data_files", data, "--block_length", 2, "--output_dir", tmp_path / "blocks", *more)
    )
    assert_one_error(done, "split_weights [949, 50, 1], not [1, 0, 0]")
    run_fine(
        *python(
            "preprocess.py", "--data_files", data, "--block_length", 2, "--output_dir", tmp_path / "blocks", *more[:2]
        )
    )


def test_input_without_any_document_leaves_nothing_behind(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"body": "x"}\n' * 10)
    flags = ["--data_files", data, "--output_dir", tmp_path / "blocks", "--max_skipped_fraction", 1]
    assert_one_error(run(*python("preprocess.py", *flags)), "no document is left")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_another_text_field(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"body": "' + "word " * 200 + '"}\n')
    flags = ["--data_files", data, "--text_field", "body", "--block_length", 16, "--output_dir", tmp_path / "blocks"]
    run_fine(*python("preprocess.py", *flags, "--split", "1,0,0"))


def test_a_finished_store_is_left_as_it_is(tmp_path: Path) -> None:
    store = tmp_path / "blocks"
    flags = ["--block_length", 64, "--output_dir", store]
    run_fine(*python("preprocess.py", *flags))
    before = digests(store)
    assert "nothing to do" in run_fine(*python("preprocess.py", *flags)).stderr
    done = run(*python("preprocess.py", *flags, "--seed", 9, "--add_bos"))
    assert_one_error(done, "token_rules bos_token_id=None, not bos_token_id=1; seed 42, not 9", "choose another")
    assert digests(store) == before


def test_a_finished_store_that_lost_a_shard_or_a_bit_is_not_nothing_to_do(tmp_path: Path) -> None:
    store = tmp_path / "blocks"
    flags = ["--block_length", 64, "--output_dir", store]
    run_fine(*python("preprocess.py", *flags))
    shard = next(store.glob("data/train-*.parquet"))
    content = bytearray(shard.read_bytes())
    digest = hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    done = run(*python("preprocess.py", *flags))
    changed = hashlib.sha256(content).hexdigest()
    assert_one_error(done, f"{shard} has the SHA-256 {changed}, the manifest has {digest}", "start again")
    shard.unlink()
    assert_one_error(run(*python("preprocess.py", *flags)), f"{shard} is missing", "delete the folder and start again")


def test_text_that_fills_no_block_makes_no_store(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a few words"}\n')
    done = run(*python("preprocess.py", "--data_files", data, "--output_dir", tmp_path / "blocks"))
    assert_one_error(done, "--block_length 4096: no split has the tokens of one block, the largest has", "more text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl"]


def test_bad_lines_at_the_beginning_do_not_stop_what_is_good_on_the_whole(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"x" * 7_000_000 + b"\n" + SAMPLE.read_bytes())
    flags = ["--data_files", data, "--block_length", 64, "--output_dir", tmp_path / "blocks"]
    run_fine(*python("preprocess.py", *flags))
    assert read_manifest(tmp_path / "blocks", flag="").skipped_lines == {"too_large": 1}


def test_a_folder_with_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert_one_error(run(*python("preprocess.py", "--output_dir", tmp_path)), "has other files")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert_one_error(run(*python("preprocess.py", "--output_dir", tmp_path / "thesis.txt")), "thesis.txt")


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(*python("preprocess.py", "--output_dir", tmp_path / "file" / "blocks"))
    assert_one_error(done, "cannot be written", "choose another folder")


def test_a_link_to_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    run_fine(*python("preprocess.py", "--output_dir", tmp_path / "link"))
    assert (tmp_path / "empty/manifest.json").is_file()


def test_a_mount_point_is_refused_before_the_work() -> None:
    assert_one_error(run(*python("preprocess.py", "--output_dir", "/dev/shm")), "is a mount point")


def test_flags_out_of_range_are_told_at_once(tmp_path: Path) -> None:
    done = run(
        *python("preprocess.py", "--block_length", 1, "--seed", -1, "--split", "a,b", "--max_skipped_fraction", 3)
    )
    assert done.returncode == 2
    assert [line.split(":")[1] for line in done.errors] == [
        " --block_length 1", " --seed -1", " --max_skipped_fraction 3", " --split a,b",
    ]  # fmt: skip
