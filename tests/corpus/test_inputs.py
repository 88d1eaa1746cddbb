from pathlib import Path

import pytest

from pretraining.cli.errors import UserError
from pretraining.corpus.inputs import find_inputs


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def test_folders_globs_and_named_sources(tmp_path: Path) -> None:
    make(tmp_path, "b/2.jsonl.gz", "b/1.jsonl", "b/deep/3.parquet", "b/notes.md", "w.txt.xz", "v=1.json")
    files = find_inputs([str(tmp_path / "b"), f"wiki={tmp_path}/*.xz", str(tmp_path / "v=1.json")])
    assert [(Path(file.path).name, file.source, file.format, file.compression) for file in files] == [
        ("1.jsonl", None, "jsonl", None),
        ("2.jsonl.gz", None, "jsonl", "gzip"),
        ("3.parquet", None, "parquet", None),
        ("w.txt.xz", "wiki", "text", "xz"),
        ("v=1.json", None, "jsonl", None),
    ]
    assert files[1].default_source == "2"
    assert files[3].default_source == "wiki"


def test_all_unusable_words_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "nothing").mkdir()
    make(tmp_path, "a.jsonl")
    words = ["missing.jsonl", "empty.jsonl", "nothing", "*.parquet", "a.jsonl", "a.jsonl"]
    with pytest.raises(UserError) as caught:
        find_inputs([str(tmp_path / word) for word in words])
    assert [problem.split(": ")[1].split(";")[0] for problem in caught.value.problems] == [
        "there is no such file",
        "is empty",
        "the folder has no .jsonl, .ndjson, .json, .parquet, .txt file in it",
        "no file is named like this",
        "is named twice",
    ]


def test_an_empty_file_among_those_of_a_folder_does_no_harm(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").touch()
    assert len(find_inputs([str(tmp_path)])) == 2
