"""What is not the name of a file gets the hint that leads to one."""

from pathlib import Path

import pytest

from pretraining.data.input.files import find_file, input_file
from pretraining.data.input.find import find_inputs
from pretraining.errors import UserError
from tests.unit.data.input.test_token_files import write_megatron


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        (
            "togethercomputer/RedPajama-Data-1T-Sample",
            "use hf://togethercomputer/RedPajama-Data-1T-Sample for the data",
        ),
        ("user/name.v2", "use hf://user/name.v2 for the data set of the Hub"),
        ("data/news.jsonl", "file not found; check the path"),
        ("data/news.jsonl.bz2", "file not found; check the path"),
        ("data/news.zip", "file not found; check the path"),
        ("../up/name", "file not found; check the path"),
        ("name", "file not found; check the path"),
    ],
)
def test_a_name_of_the_hub_without_its_scheme(
    word: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        find_inputs([word])
    assert hint in str(caught.value)
    assert ("hf://" in hint) == ("hf://" in str(caught.value))


def test_the_prefix_and_the_index_of_megatron_lead_to_its_file(tmp_path: Path) -> None:
    path = write_megatron(tmp_path / "news_text_document.bin", [[1, 2]])
    for word in (path.with_suffix(""), path.with_suffix(".idx")):
        with pytest.raises(UserError, match=r"; pass .*news_text_document\.bin|; pass that file"):
            find_inputs([str(word)], takes_tokens=True)
    for word in (f"{tmp_path}/*", str(tmp_path), str(path)):
        (file,) = find_inputs([word], takes_tokens=True)
        assert (file.path, file.format) == (str(path), "tokens")
    with pytest.raises(UserError, match="has token ids, this program reads text; pass the text"):
        find_inputs([str(path)])


def test_a_folder_gives_only_the_token_files_that_have_an_index(tmp_path: Path) -> None:
    """The folder of a model has .bin files, too."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    (tmp_path / "a.jsonl").write_text("{}")
    assert [Path(file.path).name for file in find_inputs([str(tmp_path)])] == ["a.jsonl"]
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"only those with an index .* name them, e\.g\. .*\*\.bin$"):
        find_inputs([str(tmp_path)], takes_tokens=True)


def test_a_file_is_found_by_its_recorded_path(tmp_path: Path) -> None:
    (tmp_path / "a=[b].jsonl").write_text('{"text": "a"}')
    file = find_file(str(tmp_path / "a=[b].jsonl"))
    assert (file.format, file.num_bytes) == ("jsonl", 13)
    with pytest.raises(UserError, match=r"^file not found"):
        find_file("hf://datasets/user/name@main/a.jsonl")


def test_default_source_is_the_name_of_a_member() -> None:
    file = input_file("all.zip/wiki/a.v1.jsonl", None, num_bytes=1, location="all.zip", member="wiki/a.v1.jsonl")
    assert (file.default_source, file.is_divisible) == ("a", False)
