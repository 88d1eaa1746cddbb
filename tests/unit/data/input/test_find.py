from pathlib import Path

import pytest

from pretraining.data.input.find import find_inputs
from pretraining.errors import UserError


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
    assert [problem.split(": ")[1].split(";")[0].split(" (")[0] for problem in caught.value.problems] == [
        "file not found",
        "is empty",
        "the folder has no .jsonl, .ndjson, .json, .parquet, .txt, .bin, .zip file",
        "no file matches",
        "is named twice",
    ]


def test_a_file_is_read_once_whatever_leads_to_it(tmp_path: Path) -> None:
    make(tmp_path, "a/1.jsonl", "elsewhere/2.jsonl")
    (tmp_path / "a/loop").symlink_to(tmp_path / "a")
    (tmp_path / "a/other").symlink_to(tmp_path / "elsewhere")
    names = [Path(file.path).name for file in find_inputs([str(tmp_path / "a")])]
    assert names == ["1.jsonl", "2.jsonl"]
    with pytest.raises(UserError, match="is named twice"):
        find_inputs([str(tmp_path / "a/1.jsonl"), str(tmp_path / "a/loop/1.jsonl")])


def test_a_folder_named_like_a_source_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "lang=en/x.jsonl", "lang=de/x.jsonl", "other/x.jsonl")
    monkeypatch.chdir(tmp_path)
    files = find_inputs(["lang=*/x.jsonl"])
    assert [(file.path, file.source) for file in files] == [("lang=de/x.jsonl", None), ("lang=en/x.jsonl", None)]


def test_files_that_are_not_read_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a.jsonl", "b.jsonl.7z", "c")
    assert len(find_inputs([str(tmp_path)])) == 1
    assert "2 files of other formats in it are not read" in caplog.text


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone")
    (tmp_path / "c\udcff.jsonl").write_text("x")
    with pytest.raises(UserError) as caught:
        find_inputs([str(tmp_path), "x" * 5000])
    told = caught.value.problems
    assert len(told) == 3
    assert "b.jsonl: file not found" in told[0]
    assert "c\\udcff.jsonl: the file name is not UTF-8" in told[1]
    assert "File name too long" in told[2]


def test_the_output_folder_must_not_lie_in_the_input(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    with pytest.raises(UserError, match=r"is in .*, whose files are the input; choose a folder outside"):
        find_inputs([str(tmp_path)], output_dir=tmp_path / "sub/blocks")


def test_an_empty_file_among_those_of_a_folder_does_no_harm(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").touch()
    assert len(find_inputs([str(tmp_path)])) == 2
