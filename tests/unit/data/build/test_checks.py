"""Input without documents ends a run early, and leaves nothing behind that would reject the right flags."""

import json
from pathlib import Path

import pytest

import preprocess
from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.data.build import checks
from pretraining.data.build.checks import check_token_inputs, fields_shown
from pretraining.data.input.find import find_inputs
from pretraining.data.store.manifest import read_manifest
from pretraining.errors import UserError
from tests.unit.data.build.test_partial_store import stories
from tests.unit.data.input.test_token_files import write_flat, write_megatron


@pytest.mark.parametrize("more", [[], ["--exact_duplicates"], ["--num_slices", "4"]], ids=" ".join)
def test_a_wrong_text_field_that_is_found_early_leaves_no_folder(
    tmp_path: Path, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "ENOUGH_BYTES", 100_000)
    for name, number in (("a", 1), ("b", 4)):  # the first slices are finished before it is found
        lines = (json.dumps({"content": f"{name}{copy} {text}"}) + "\n" for copy in range(number) for text in stories())
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    flags = ["--data_files", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--block_length", "64"]
    flags += ["--output_dir", str(tmp_path / "blocks"), *more]
    with pytest.raises(UserError, match=r"no field text; the fields are: content, \.\.\."):
        preprocess.main(flags)
    assert not (tmp_path / "blocks.partial").exists()
    preprocess.main([*flags, "--text_field", "content"])
    assert read_manifest(tmp_path / "blocks", flag="").num_documents == 5 * len(stories())


def test_flags_of_text_are_rejected_where_they_have_no_effect(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    text, ids = str(tmp_path / "a.jsonl"), str(write_megatron(tmp_path / "b.bin", [[5]]))

    def problems(data_files: list[str], **flags: object) -> list[str]:
        arguments = PreprocessArguments(data_files=data_files, **flags)  # type: ignore[arg-type]
        try:
            check_token_inputs(arguments, find_inputs(data_files, takes_tokens=True))
        except UserError as error:
            return [problem.split(":")[0] for problem in error.problems]
        return []

    assert problems([text, ids], text_field="body", source_field="from") == []
    assert problems([ids], text_field="body", source_field="from") == ["--text_field", "--source_field"]
    assert problems([text], min_characters=5) == []
    assert problems([text, ids], min_characters=5, near_duplicates=0.8) == ["--min_characters", "--near_duplicates"]


TYPO = ["--text_field", "txet"]
CASES_OF_BAD_LINES = [
    ('{"text": "x"}\n', TYPO, "no field txet; the fields are: text; ", "or use the right --text_field"),
    ("id,text\n1,a story\n", [], "not json ('id,text')", "or use JSON lines or Parquet if it is CSV"),
    ("[1]\n", [], "not an object ('[1]')", "fix them"),
]


@pytest.mark.parametrize(("line", "flags", "found", "remedy"), CASES_OF_BAD_LINES)
def test_the_remedy_is_that_of_the_first_line_and_allows_no_more_where_no_line_is_a_document(
    line: str, flags: list[str], found: str, remedy: str, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_text(line)
    words = ["--data_files", str(tmp_path / "a.csv"), "--output_dir", str(tmp_path / "blocks"), "--block_length", "64"]
    with pytest.raises(UserError) as caught:
        preprocess.main([*words, *flags])
    (problem,) = caught.value.problems
    assert f"a.csv:1: {found}" in problem
    assert problem.endswith(remedy), problem
    with (tmp_path / "a.csv").open("a") as file:
        file.write('{"text": "a", "txet": "b"}\n')
    with pytest.raises(UserError, match="or allow more; after"):
        preprocess.main([*words, *flags])


@pytest.mark.parametrize(
    ("beginning", "names"),
    [
        ('{"a\\"b" : [1, {"c": 2}] , "d":"x"}', ['a\\"b', "d"]),
        ('{"a": 1, "b', ["a", "..."]),
        ('{"a": 12', ["a", "..."]),
        ("{}", []),
        ("{'a': 1}", []),
        ('{"a": ' + "[" * 5000, ["a", "..."]),
    ],
)
def test_fields_are_named_as_far_as_they_are_seen(beginning: str, names: list[str]) -> None:
    assert fields_shown(beginning) == names


def test_a_file_of_ids_without_index_is_said_to_be_read_as_those_of_nanogpt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    documents = [[5, 6, 7]] * 40
    paths = [
        write_flat(tmp_path / "flat.bin", documents),
        write_flat(tmp_path / "header.bin", documents, eos_first=True, magic=20240520),
        write_megatron(tmp_path / "indexed.bin", documents),
    ]
    flags = ["--block_length", "16", "--output_dir", str(tmp_path / "blocks"), "--split", "1,0,0"]
    with caplog.at_level("INFO", logger="pretraining"):
        preprocess.main(["--data_files", *map(str, paths), *flags])
    lines = [record.getMessage() for record in caplog.records if "nanoGPT" in record.getMessage()]
    assert lines == [f"{paths[0]}: no flat.idx beside it, read as nanoGPT's ids; documents end at EOS (id 2)"]
