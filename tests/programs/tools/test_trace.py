"""tools.trace as a user starts it: tables, JSON, and each mistake in one line."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR, Done, assert_one_error, run_fine
from tests.programs.launching import run_forked, run_forked_fine

SAMPLE = PROJECT_DIR / "data/sample/news.jsonl"
STORIES = [json.loads(line)["text"] for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
TRACE = [sys.executable, "-m", "tools.trace"]


def json_lines(done: Done) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_block_is_a_table_of_its_pieces(sample_store: Path) -> None:
    done = run_forked_fine(*TRACE, sample_store, "--block", 3)
    rows = json_lines(run_forked_fine(*TRACE, "--dataset", sample_store, "--block", 3, "--split", "train", "--json"))
    heading, *lines = done.stdout.splitlines()
    assert heading.split()[:3] == ["split", "block", "piece"]
    assert len(lines) == len(rows) > 0
    for line, row in zip(lines, rows, strict=True):
        assert line.split()[:3] == ["train", "3", str(row["piece"]["number"])]
        assert f"{row['document']['file']}:{row['document']['line']} " in line
        assert row["part"] in line
        assert row["text"].strip() in STORIES[row["document"]["line"] - 1]
    assert sum(row["piece"]["num_tokens"] for row in rows) == 64
    assert done.stderr == ""


def test_a_token_has_its_document_with_all_of_its_text(sample_store: Path) -> None:
    done = run_forked_fine(*TRACE, sample_store, "--block", 1, "--position", 63)
    (row,) = json_lines(run_forked_fine(*TRACE, sample_store, "--block", 1, "--position", 63, "--json"))
    story = STORIES[row["document"]["line"] - 1]
    assert row["document_text"] == story
    assert row["position"] == 63
    assert done.stdout.endswith(f":{row['document']['line']}:\n\n{story}\n")


def test_a_text_is_found_in_every_split_and_in_one(sample_store: Path) -> None:
    rows = json_lines(run_forked_fine(*TRACE, sample_store, "--text", "the", "--json"))
    assert {row["piece"]["split"] for row in rows} == {"train", "validation", "test"}
    only = json_lines(
        run_forked_fine(*TRACE, sample_store, "--text", "the", "--split", "test", "--json", "--num_workers", 1)
    )
    assert only == [row for row in rows if row["piece"]["split"] == "test"]
    table = run_forked_fine(*TRACE, sample_store, "--text", "the").stdout.splitlines()
    assert len(table) == 1 + len(rows)


def test_a_text_that_is_nowhere_is_exit_code_1(sample_store: Path) -> None:
    done = run_forked(*TRACE, sample_store, "--text", "a text of no story")
    assert (done.returncode, done.stdout) == (1, "")
    assert run_forked_fine(*TRACE, sample_store, "--text", "none", "--json").stdout.count("none") > 0
    assert done.stderr.startswith("the text is in none of the ")
    assert done.stderr.endswith(" blocks of train, validation, test\n")


def test_a_source_that_is_gone_is_told_and_the_row_is_shown(sample_store: Path, tmp_path: Path) -> None:
    elsewhere = {"cwd": tmp_path, "env": {"PYTHONPATH": str(PROJECT_DIR)}}
    done = run_forked_fine(*TRACE, sample_store, "--block", 0, "--position", 0, **elsewhere)
    assert done.stderr.startswith("warning: data/sample/news.jsonl: not found")
    assert len(done.stdout.splitlines()) == 2
    copy = tmp_path / "data/sample/news.jsonl"
    copy.parent.mkdir(parents=True)
    content = SAMPLE.read_bytes()
    copy.write_bytes(content.replace(b"the", b"zzz"))
    done = run_forked_fine(*TRACE, sample_store, "--block", 0, "--position", 0, "--json", **elsewhere)
    assert "has changed, its text does not have the ids of the block" in done.stderr
    assert json.loads(done.stdout)["document_text"] is None


def test_it_ends_when_its_reader_does(sample_store: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m tools.trace {sample_store} --text e | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=PROJECT_DIR, capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--block", "999999"], ["--block 999999: ", " has ", " blocks in split train, 0 to "]),
        (["--block", "-1"], ["--block -1: "]),
        (["--block", "0", "--split", "dev"], ["'dev' is not one of train, validation, test"]),
        (["--block", "0", "--position", "64"], ["--position 64: ", "tokens 0 to 63"]),
        (["--position", "5", "--text", "x"], ["--position 5: ", "add --block"]),
        ([], ["--block, --text: use exactly one of the two"]),
        (["--block", "0", "--text", "x"], ["--block, --text: use exactly one of the two"]),
        (["--text", ""], ["--block, --text: use exactly one of the two"]),
        (["--text", b"caf\xe9".decode("utf-8", "surrogateescape")], ["--text: expects UTF-8"]),
        (["--block", "0", "--num_workers", "0"], ["--num_workers 0: must be in [1, 1024]"]),
        (["elsewhere", "--block", "0"], ["--dataset: expects one value, not 2"]),
    ],
)
def test_a_mistake_is_one_line(sample_store: Path, words: list[str], parts: list[str]) -> None:
    done = run_forked(*TRACE, sample_store, *words)
    assert done.returncode == 2
    assert_one_error(done, *parts)


def test_a_folder_that_is_no_block_store(tmp_path: Path) -> None:
    assert_one_error(run_forked(*TRACE, tmp_path, "--block", 0), f"--dataset {tmp_path}: not a block store")
    assert_one_error(
        run_forked(*TRACE, "--block", 0, cwd=tmp_path, env={"PYTHONPATH": str(PROJECT_DIR)}), "--dataset blocks"
    )


def test_help_says_how_it_is_started_and_needs_no_torch() -> None:
    assert run_fine(*TRACE, "--help").stdout.startswith("usage: python3 -m tools.trace [DATASET] [--recipe FILE]")
    without_torch = "import sys; sys.modules['torch'] = sys.modules['pandas'] = None; import tools.trace"
    run_fine(sys.executable, "-c", without_torch)
