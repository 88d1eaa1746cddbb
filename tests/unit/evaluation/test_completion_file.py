"""Files of completions: those of generate.py, and what is not one is named with its line."""

import json
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.evaluation.completion_file import SavedCompletion, read_completion_file

LINE = {"prompt": "a", "text": "b", "tokens": [1, 2], "finish_reason": "eos"}


def test_other_fields_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({**LINE, "sample": 3}) + "\n\n" + json.dumps(LINE) + "\n")
    assert read_completion_file(path, flag="--completions") == [SavedCompletion("a", "b", [1, 2], "eos")] * 2


@pytest.mark.parametrize("change", [{"text": None}, {"tokens": ["1"]}, {"tokens": 1}])
def test_a_wrong_line_is_named(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | change) + "\n")
    with pytest.raises(UserError, match=f"--completions {path}:2: is not an object with prompt, text, tokens"):
        read_completion_file(path, flag="--completions")
