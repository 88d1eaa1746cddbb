"""Phases of a recipe: every mistake in one line with its place, all at once."""

from pathlib import Path

import pytest

from pretraining.cli.arguments.phases import PhaseArguments, phase_ends, read_phase
from pretraining.cli.arguments.pretrain import PretrainArguments, parse_pretrain_arguments
from pretraining.errors import UserError

GOOD = """\
max_tokens: 1000
phases:
  - name: pretrain
    dataset: [news=a:0.7, wiki=b:0.3]
    share: 0.9
  - {name: anneal, dataset: better=c, share: 0.1, lr_scheduler_type: linear, learning_rate: 3e-4, warmup_steps: 0.5}
"""


def parsed(tmp_path: Path, text: str) -> PretrainArguments:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return parse_pretrain_arguments("", ["--recipe", str(path)])


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parsed(tmp_path, text)
    return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


def test_phases_are_read_with_the_types_of_flags(tmp_path: Path) -> None:
    first, second = parsed(tmp_path, GOOD).data.phases
    assert first == PhaseArguments("pretrain", ["news=a:0.7", "wiki=b:0.3"], 0.9)
    assert not first.has_schedule
    assert second == PhaseArguments("anneal", ["better=c"], 0.1, "linear", 3e-4, warmup_steps=0.5)
    assert second.has_schedule


def test_each_problem_has_its_line(tmp_path: Path) -> None:
    bad = GOOD.replace("    share: 0.9\n", "    lr: 1\n").replace("better=c, share: 0.1", "[], share: 2")
    missing = 'a phase is e.g. {"name": "anneal", "dataset": "blocks", "share": 0.1}'
    assert problems(tmp_path, bad) == [
        f"recipe.yaml:3: phases: phase pretrain: share is missing; {missing}",
        "recipe.yaml:3: phases: phase pretrain: lr: is not a field of a phase (did you mean learning_rate?)",
        "recipe.yaml:6: phases: phase anneal: dataset: expects at least one value",
        "recipe.yaml:6: phases: phase anneal: share 2: must be in (0, 1]",
    ]
    (found,) = problems(tmp_path, "phases: [pretrain]\nmax_steps: 5\n")
    assert found.startswith("recipe.yaml:1: phases: expects the fields of each phase, e.g. {")


@pytest.mark.parametrize(
    ("replaced", "by", "expected"),
    [
        ("share: 0.1", "share: 0.2", "--phases: the shares sum to 1.1, not to 1; change one of pretrain, anneal"),
        ("name: anneal", "name: pretrain", "--phases: two are called pretrain; use different names"),
        ("max_tokens: 1000\n", "", "--phases: the length of the run is missing, of which each has a share; add "),
        ("max_tokens: 1000\n", "max_steps: 9\ndataset: x\n", "--dataset x --phases {"),
    ],
)
def test_what_all_phases_must_be(replaced: str, by: str, expected: str, tmp_path: Path) -> None:
    (found,) = problems(tmp_path, GOOD.replace(replaced, by))
    assert found.startswith(expected)


def test_a_command_line_without_phases_replaces_those_of_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD)
    for words, dataset in (
        (["--dataset", "other"], ["other"]),
        (["--dataset", "blocks"], ["blocks"]),
        (["--phases", "none"], ["blocks"]),
    ):
        data = parse_pretrain_arguments("", ["--recipe", str(path), *words]).data
        assert (data.phases, data.dataset) == ([], dataset)
    path.write_text("dataset: other\nmax_steps: 10\n")
    phase = '{"name": "x", "dataset": "blocks", "share": 1}'
    data = parse_pretrain_arguments("", ["--recipe", str(path), "--phases", phase]).data
    assert (len(data.phases), data.dataset) == (1, ["blocks"])
    with pytest.raises(UserError, match=r"^--dataset blocks --phases {.*}: exclude each other; keep one$"):
        parse_pretrain_arguments("", ["--max_steps", "9", "--phases", phase, "--dataset", "blocks"])


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("null", "expects a value, not null"), ("{a: b}", "expects a value or a list of them, not a mapping")],
)
def test_a_data_set_that_is_no_text_is_refused(dataset: str, expected: str, tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD.replace("dataset: better=c", f"dataset: {dataset}"))
    assert found == [f"recipe.yaml:6: phases: phase anneal: dataset: {expected}"]


def test_a_duplicate_key_of_a_phase_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD.replace("    share: 0.9\n", "    share: 0.9\n    share: 0.1\n")) == [
        "recipe.yaml:6: phases: share: duplicate key; keep one"
    ]
    with pytest.raises(ValueError, match="share: duplicate key; keep one"):
        read_phase('{"name": "x", "dataset": "blocks", "share": 1, "share": 0.5}')


@pytest.mark.parametrize("num_steps", [3, 10, 25, 99, 10**9])
def test_whole_steps_add_up_to_the_run(num_steps: int) -> None:
    phases = [PhaseArguments(str(share), ["x"], share) for share in (0.34, 0.33, 0.33)]
    ends = phase_ends(phases, num_steps)
    assert ends[-1] == num_steps
    assert [abs(end - share * num_steps) <= 0.5 + 1e-6 for end, share in zip(ends, (0.34, 0.67), strict=False)] == [
        True
    ] * 2


def test_a_phase_without_a_step_is_refused() -> None:
    phases = [PhaseArguments("long", ["x"], 0.99), PhaseArguments("short", ["x"], 0.01)]
    assert phase_ends(phases, 100) == [99, 100]
    with pytest.raises(UserError, match=r"--phases: short: its share of 0\.01 of 20 steps is less than one step"):
        phase_ends(phases, 20)
    assert phase_ends([], 20) == []


def test_a_phase_of_the_command_line_is_json() -> None:
    assert read_phase('{"name": "x", "dataset": "blocks", "share": 1}') == PhaseArguments("x", ["blocks"], 1.0)
    for text in ("5", "[]", "{", "[" * 10_000):
        with pytest.raises(ValueError, match="expects the fields of each phase"):
            read_phase(text)
