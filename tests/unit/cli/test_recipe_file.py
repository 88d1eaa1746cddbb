"""A recipe is read as the words of a command line, each with its line."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from pretraining.cli.flags import Setting, flag, flags_of
from pretraining.cli.recipe_file import recipe_settings
from pretraining.errors import UserError


@dataclass(frozen=True)
class Arguments:
    steps: int = flag(1, "a count")
    parts: list[str] = flag([], "words that add up", adds_up=True)


def read(tmp_path: Path, text: str) -> tuple[list[Setting], list[str]]:
    path, problems = tmp_path / "recipe.yaml", list[str]()
    path.write_text(text)
    settings = recipe_settings(path, {one.name: one for one in flags_of(Arguments)}, problems)
    shown = [setting._replace(place=setting.place.removeprefix(f"{tmp_path}/")) for setting in settings]
    return shown, [problem.removeprefix(f"{tmp_path}/") for problem in problems]


def test_each_value_and_each_item_that_adds_up_has_its_line(tmp_path: Path) -> None:
    settings, problems = read(tmp_path, "steps: 1_000\nparts:\n  - {a: 1}\n  - b\nother: [x, null]\n")
    assert settings == [
        ("recipe.yaml:1: steps", "steps", ["1_000"]),
        ("recipe.yaml:3: parts", "parts", ['{"a": 1}']),
        ("recipe.yaml:4: parts", "parts", ["b"]),
        ("recipe.yaml:5: other", "other", ["x", "none"]),
    ]
    assert problems == []


def test_a_duplicate_key_is_reported_wherever_it_is(tmp_path: Path) -> None:
    text = "parts:\n  - name: a\n    share: 0.5\n    share: 0.9\n  - {b: {c: 1, c: 2}}\nsteps: 1\nsteps: 2\n"
    _, problems = read(tmp_path, text)
    assert problems == [
        "recipe.yaml:4: parts: share: duplicate key; keep one",
        "recipe.yaml:5: parts: c: duplicate key; keep one",
        "recipe.yaml:7: steps: duplicate key; keep one",
    ]


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file; pass a YAML file of flags"):
        recipe_settings(tmp_path, {}, [])
