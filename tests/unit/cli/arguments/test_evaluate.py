"""What tools.evaluate accepts together."""

from pathlib import Path
from typing import Any

import pytest

from pretraining.cli.arguments.evaluate import EvaluationArguments
from pretraining.errors import UserError

MODEL = ["runs/a"]


@pytest.mark.parametrize(
    "flags",
    [
        {"model": MODEL, "tasks": ["t.jsonl"]},
        {"model": MODEL, "tasks": ["t.jsonl"], "data_files": ["a.jsonl"], "prompts": ["The"], "all_checkpoints": True},
        {"model": [*MODEL, "runs/b"], "dataset": "blocks"},
        {"completions": Path("c.jsonl")},
        {"completions": Path("c.jsonl"), "model": MODEL, "reference_files": ["a.jsonl"]},
    ],
)
def test_what_belongs_together_is_accepted(flags: dict[str, Any]) -> None:
    EvaluationArguments(**flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"tasks": ["t.jsonl"]}, "--model: is missing"),
        ({"model": MODEL}, "--data_files, --dataset, --tasks, --prompts, --completions: are missing"),
        ({"model": MODEL, "completions": Path("c"), "tasks": ["t"]}, "--completions: excludes --data_files, --dataset"),
        ({"model": ["a", "b"], "completions": Path("c")}, "--completions: excludes"),
        ({"model": MODEL, "dataset": "b", "data_files": ["a"]}, "--data_files, --dataset: exclude each other"),
        ({"model": MODEL, "dataset": "b", "window_tokens": 9}, "--window_tokens 9: does not apply to --dataset"),
        ({"model": MODEL, "prompts": [""]}, "--prompts: is empty"),
        ({"completions": Path("c"), "reference_files": ["a"]}, "--reference_files: needs a model"),
    ],
)
def test_what_does_not_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        EvaluationArguments(**flags)
    assert any(problem.startswith(message) for problem in caught.value.problems)
