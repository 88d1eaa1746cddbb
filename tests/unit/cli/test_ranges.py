"""Every numeric flag of every program has a range, which holds for recipes and command lines alike."""

import importlib
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from pretraining.cli.arguments.finetune import FINETUNE_DEFAULTS, ConversationArguments
from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.arguments.trainer import trainer_group
from pretraining.cli.flags import Flag, flags_of
from pretraining.cli.ranges import RANGES, Range
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError
from tests.conftest import PROJECT_DIR

FILES = sorted((PROJECT_DIR / "pretraining/cli/arguments").glob("*.py"))
ARGUMENT_MODULES = [f"pretraining.cli.arguments.{path.stem}" for path in FILES if path.stem != "__init__"]
TOOLS = [f"tools.{path.stem}" for path in (PROJECT_DIR / "tools").glob("*.py") if path.stem != "__init__"]


def all_flags() -> list[Flag]:
    """The flags of each dataclass of flags that a program, or a module of arguments, has, and the Trainer's."""
    modules = [importlib.import_module(name) for name in [*ARGUMENT_MODULES, *TOOLS]]
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}
    ours = [kind for kind in kinds if is_dataclass(kind) and kind.__name__.endswith("Arguments")]
    flagged = [kind for kind in ours if all("help" in f.metadata for f in kind.__dataclass_fields__.values())]
    groups = [*map(flags_of, flagged), trainer_group(FINETUNE_DEFAULTS).flags]
    return [flag for group in groups for flag in group]


NUMERIC_FLAGS = [flag for flag in all_flags() if flag.value_type in (int, float)]


def test_every_numeric_flag_has_a_range() -> None:
    assert len(NUMERIC_FLAGS) > 100
    assert sorted({flag.name for flag in NUMERIC_FLAGS} - RANGES.keys()) == []
    assert sorted(RANGES.keys() - {flag.name for flag in NUMERIC_FLAGS}) == []


def test_every_default_is_in_its_range() -> None:
    numbers = [(flag, flag.default) for flag in NUMERIC_FLAGS if flag.default is not None]
    assert [flag.name for flag, default in numbers if RANGES[flag.name].problem(default)] == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 10**30, 10**400, -(10**400), -2])
def test_no_range_has_what_no_flag_means(number: float) -> None:
    assert [name for name, allowed in RANGES.items() if allowed.problem(number) is None] == []


def test_a_range_says_what_it_allows() -> None:
    assert str(Range(0, 1, below_high=True)) == "[0, 1)"
    assert str(Range(0, 10**9, above_low=True)) == "(0, 1e9]"
    assert str(Range(1e-6, 2**32 - 1)) == "[1e-06, 4294967295]"


def test_bounds_are_in_a_range_unless_they_are_left_out() -> None:
    closed, half_open = Range(0, 1, also=(-1,)), Range(0, 1, above_low=True, below_high=True)
    assert [closed.problem(number) for number in (-1, 0, 0.5, 1)] == [None] * 4
    assert [half_open.problem(number) for number in (0, 1)] == ["must be in (0, 1)"] * 2


def test_steps_are_whole_and_shares_are_not() -> None:
    steps = Range(0, 100, whole_from_one=True)
    assert [steps.problem(number) for number in (0, 0.3, 1, 7)] == [None] * 4
    assert steps.problem(1.5) == "must be a whole number of steps, or a share of the run below 1"


def test_a_recipe_and_a_command_line_report_all_ranges_at_once(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("block_length: 1\nsave_steps: 0\n")
    with pytest.raises(UserError) as caught:
        parse_pretrain_arguments(
            "", ["--recipe", str(recipe), "--adam_beta2", "2", "--max_steps", "0", "--license", "My Own"]
        )
    assert caught.value.problems == (
        f"{recipe}:1: block_length 1: must be in [2, 16777216]",
        f"{recipe}:2: save_steps 0: must be in (0, 1e9]; --save_strategy no saves at the end alone",
        "--adam_beta2 2: must be in [0, 1)",
        "--max_steps 0: must be in [1, 1e9]; -1 leaves the length to --num_train_epochs or --max_tokens",
        "--license My Own: is not a license of the Hub; use e.g. apache-2.0 or other",
    )


def test_a_value_of_a_thousand_digits_is_shortened() -> None:
    with pytest.raises(UserError) as caught:
        parse_recipe("", [dataclass_group("Sampling", GenerateArguments)], ["--num_samples", "9" * 1000])
    assert caught.value.problems == (f"--num_samples {'9' * 80}...: must be in [1, 1e6]",)


def test_a_run_may_keep_all_checkpoints_and_pass_the_default_of_max_steps() -> None:
    for words in (["--save_total_limit", "-1"], ["--save_total_limit", "0"], ["--max_steps", "-1"]):
        parse_pretrain_arguments("", words)


def test_conversations_have_ranges_too() -> None:
    assert {flag.name: flag.range for flag in flags_of(ConversationArguments)}["loss_tiles"] == RANGES["loss_tiles"]


@pytest.mark.parametrize("accelerator", ["foo", "", "xpu"])
def test_an_accelerator_that_is_not_supported_is_refused(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", accelerator)
    with pytest.raises(UserError, match=r"DS_ACCELERATOR=.*: must be cuda or cpu; unset it"):
        parse_pretrain_arguments("", [])
