from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from pretraining.cli.arguments.preprocess import PreprocessArguments
from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.arguments.trainer import trainer_group
from pretraining.cli.flags import flag
from pretraining.cli.recipe import dataclass_group, parse_recipe
from pretraining.errors import UserError
from tests.conftest import PROJECT_DIR


@dataclass(frozen=True)
class Arguments:
    rate: float = flag(0.1, "a number")
    steps: int = flag(10, "a count")
    names: list[str] = flag(["a"], "words")
    kind: Literal["red", "green"] = flag("red", "a choice")
    limit: int | None = flag(None, "an optional number")
    fast: bool = flag(False, "a switch")
    place: Path = flag(Path("x"), "a path")
    more: list[str] | None = flag(None, "words that add up", adds_up=True)


def parse(*argv: str) -> Arguments:
    (arguments,) = parse_recipe("test", [dataclass_group("Test", Arguments)], argv)
    return arguments


def recipe(tmp_path: Path, text: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return str(path)


def problems(*argv: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse(*argv)
    return list(caught.value.problems)


def test_defaults_without_flags() -> None:
    assert parse() == Arguments()


def test_a_flag_reads_each_type() -> None:
    words = "--rate 3e-4 --steps 1_000 --names b c --kind green --limit 5 --fast --place a/b".split()
    assert parse(*words) == Arguments(3e-4, 1000, ["b", "c"], "green", 5, True, Path("a/b"))


def test_dashes_and_equals_are_read_like_underscores_and_spaces() -> None:
    assert parse("--steps=-1", "--rate", "-2") == Arguments(rate=-2.0, steps=-1)


def test_values_may_stand_first_without_their_flags() -> None:
    def parse_tool(*argv: str) -> Arguments:
        (arguments,) = parse_recipe("test", [dataclass_group("Test", Arguments)], argv, first=["place", "steps"])
        return arguments

    assert parse_tool("a/b", "--steps", "3") == parse_tool("--steps", "3", "--place", "a/b") == parse_tool("a/b", "3")
    assert parse_tool("--steps", "3") == Arguments(steps=3)
    assert problems("a/b") == ["a/b: unexpected value (flags are `--name value`)"]


def test_an_optional_choice() -> None:
    @dataclass(frozen=True)
    class Choice:
        kind: Literal["red", "green"] | None = flag(None, "a choice, or none")

    (chosen,) = parse_recipe("test", [dataclass_group("Test", Choice)], ["--kind", "green"])
    (left,) = parse_recipe("test", [dataclass_group("Test", Choice)], ["--kind", "none"])
    assert (chosen.kind, left.kind) == ("green", None)


def test_a_recipe_is_a_saved_command_line(tmp_path: Path) -> None:
    text = "rate: 3e-4\nsteps: 20\nnames: [b, c]\nfast: true\nlimit: null\nplace: a/b\n"
    from_recipe = parse("--recipe", recipe(tmp_path, text))
    assert from_recipe == parse(*"--rate 3e-4 --steps 20 --names b c --fast true --limit none --place a/b".split())


def test_the_command_line_beats_the_recipe_which_beats_the_default(tmp_path: Path) -> None:
    arguments = parse("--recipe", recipe(tmp_path, "rate: 2\nsteps: 20\n"), "--steps", "30")
    assert (arguments.rate, arguments.steps, arguments.kind) == (2.0, 30, "red")


def test_of_a_repeated_flag_the_last_value_counts() -> None:
    words = "--steps 2 --names a b --fast --limit 3 --steps 4 --names c --fast false --limit none".split()
    assert parse(*words) == Arguments(steps=4, names=["c"])
    assert problems("--steps", "2", "--steps") == ["--steps: expects one value, not 0"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--more b --more c d", ["a", "b", "c", "d"]),
        ("--more b --more none", None),
        ("--more none --more b", ["b"]),
        ("--more b --more none --more c --more d", ["c", "d"]),
    ],
)
def test_values_that_add_up_do_so_from_the_last_none_on(words: str, expected: list[str] | None, tmp_path: Path) -> None:
    assert parse("--recipe", recipe(tmp_path, "more: a"), *words.split()).more == expected


def test_all_problems_are_reported_at_once_with_their_places(tmp_path: Path) -> None:
    path = recipe(tmp_path, "raet: 1\nsteps: 2.5\nkind: blue\nsteps: 3\n")
    found = problems("--recipe", path, "--limit", "many", "--namse", "x")
    assert found == [
        "--namse: unknown flag (did you mean names?)",
        f"{path}:4: steps: duplicate key; keep one",
        f"{path}:1: raet: unknown flag (did you mean rate?)",
        f"{path}:3: kind: 'blue' is not one of red, green",
        "--limit: expects a whole number, not 'many'",
    ]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--steps"], "--steps: expects one value, not 0"),
        (["--steps", "1", "2"], "--steps: expects one value, not 2: 1 2"),
        (["--names"], "--names: expects at least one value"),
        (["--fast", "maybe"], "--fast: expects true or false, not 'maybe'"),
        (["--rat", "1"], "--rat: unknown flag (did you mean rate?)"),
        (["stray"], "stray: unexpected value (flags are `--name value`)"),
        (["--steps", "none"], "--steps: expects a whole number, not 'none'"),
    ],
)
def test_a_wrong_word_is_refused(argv: list[str], expected: str) -> None:
    assert problems(*argv) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("- a\n- b\n", "expects lines of the form"), ("a: [b\n", "is not YAML"), ("", "expects lines of the form")],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems("--recipe", recipe(tmp_path, text))[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("? [a, b]\n: c\n", ":1: this key: unknown flag"),
        ("names: {a: 2020-01-01}\n", ":1: names: expects a plain value"),
        ("steps: 1\nnames: &x [*x]\n", ":2: names: expects a plain value"),
        ("names: {a: !foo b}\n", ":1: names: expects a plain value"),
    ],
)
def test_odd_yaml_is_refused_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    path = recipe(tmp_path, text)
    (problem,) = problems("--recipe", path)
    assert problem.startswith(path + expected)


def test_a_missing_recipe_is_refused() -> None:
    assert "cannot be read" in problems("--recipe", "nowhere.yaml")[0]


def test_every_recipe_of_the_project_parses() -> None:
    preprocess = [dataclass_group("", PreprocessArguments)]
    paths = sorted((PROJECT_DIR / "recipes").rglob("*.yaml"))
    assert len(paths) >= 4
    for path in paths:
        if path.stem == "preprocess":
            assert parse_recipe("", preprocess, ["--recipe", str(path)]), path
        else:
            assert parse_pretrain_arguments("", ["--recipe", str(path), "--dry_run"]).model, path  # for any machine
        assert path.read_text().startswith("# "), f"{path}: the first line says what it is for"


# Peak and floor of the learning rate, warm-up, tokens of a step, weight decay, as published; sources in the recipes.
PUBLISHED = {
    "llama1_7b": (3e-4, 3e-5, 2000, 2**22, 0.1),
    "llama1_13b": (3e-4, 3e-5, 2000, 2**22, 0.1),
    "llama1_30b": (1.5e-4, 1.5e-5, 2000, 2**22, 0.1),
    "llama1_65b": (1.5e-4, 1.5e-5, 2000, 2**22, 0.1),
    "llama2_7b": (3e-4, 3e-5, 2000, 2**22, 0.1),
    "llama2_13b": (3e-4, 3e-5, 2000, 2**22, 0.1),
    "llama2_70b": (1.5e-4, 1.5e-5, 2000, 2**22, 0.1),
    "llama3_8b": (3e-4, 3e-6, 8000, 2**22, 0.1),
    "llama_345m": (1.5e-4, 1e-5, 0.01, 2**19, 0.01),
    "tinyllama_1b": (4e-4, 4e-5, 2000, 2**21, 0.1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_of_published_models_have_the_published_settings(name: str) -> None:
    arguments = parse_pretrain_arguments("", ["--recipe", str(PROJECT_DIR / f"recipes/{name}.yaml")])
    trainer = arguments.trainer
    found = (trainer["learning_rate"], arguments.optimization.min_learning_rate, trainer["warmup_steps"])
    assert (*found, arguments.data.global_batch_tokens, trainer["weight_decay"]) == PUBLISHED[name]
    assert arguments.model.model == name
    assert arguments.optimization.lr_scheduler_type == "cosine"
    assert arguments.data.document_masking == (name == "llama3_8b")
    assert trainer.get("adam_epsilon", 1e-8) == (1e-5 if name.startswith("llama2") else 1e-8)


def test_a_flag_of_the_command_line_replaces_the_one_of_the_recipe_that_excludes_it(tmp_path: Path) -> None:
    path = recipe(tmp_path, "global_batch_tokens: 8192\nmax_tokens: 65536\n")
    flags = ["--recipe", path, "--deepspeed", str(PROJECT_DIR / "ds_config.json")]
    found = parse_pretrain_arguments("", [*flags, "--global_batch_blocks", "64", "--max_steps", "7"])
    assert (found.data.global_batch_tokens, found.data.global_batch_blocks) == (None, 64)
    assert (found.data.max_tokens, found.trainer["max_steps"]) == (None, 7)
    unset = parse_pretrain_arguments("", [*flags, "--global_batch_blocks", "none", "--max_steps", "-1"])
    assert (unset.data.global_batch_tokens, unset.data.max_tokens) == (8192, 65536), "these leave the recipe as it is"
    epochs = parse_pretrain_arguments("", [*flags, "--num_train_epochs", "3"])
    assert (epochs.data.max_tokens, epochs.trainer["num_train_epochs"]) == (None, 3)
    with pytest.raises(UserError, match="--max_steps 7 --num_train_epochs 3: exclude each other; keep one"):
        parse_pretrain_arguments("", [*flags, "--num_train_epochs", "3", "--max_steps", "7"])
    words = ["--max_steps", "7", "--max_steps", "-1", "--num_train_epochs", "3"]
    assert parse_pretrain_arguments("", [*flags, *words]).trainer["num_train_epochs"] == 3


@pytest.mark.parametrize(
    ("lines", "flags"),
    [
        ("global_batch_tokens: 8192\nglobal_batch_blocks: 64\n", "--global_batch_tokens 8192 --global_batch_blocks 64"),
        ("max_steps: 10\nnum_train_epochs: 3\n", "--max_steps 10 --num_train_epochs 3"),
        ("num_train_epochs: 3\nmax_tokens: 65536\n", "--max_tokens 65536 --num_train_epochs 3"),
        ("max_steps: 10\nnum_train_epochs: 3\nmax_tokens: 9\n", "--max_tokens 9 --max_steps 10 --num_train_epochs 3"),
    ],
)
def test_flags_of_a_recipe_that_exclude_each_other_are_refused(lines: str, flags: str, tmp_path: Path) -> None:
    path = recipe(tmp_path, lines)
    for words in ([], ["--max_steps", "-1"] if "max_steps" not in lines else []):
        with pytest.raises(UserError) as caught:
            parse_pretrain_arguments("", ["--recipe", path, *words])
        assert caught.value.problems == (f"{flags}: exclude each other; keep one",)
    one_flag, value = ("--global_batch_blocks", "2") if "batch" in lines else ("--max_steps", "7")
    parse_pretrain_arguments("", ["--recipe", path, one_flag, value])


def test_dictionaries_are_read_as_json(tmp_path: Path) -> None:
    text = "activation_checkpointing: true\nactivation_checkpointing_kwargs: {every_n_layers: 2, offload: true}\n"
    (flags,) = parse_recipe("", [trainer_group()], ["--recipe", recipe(tmp_path, text)])
    assert flags["activation_checkpointing_kwargs"] == {"every_n_layers": 2, "offload": True}


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("batch_size", "unknown flag (did you mean per_device_train_batch_size?)"),
        ("lr", "unknown flag (did you mean learning_rate?)"),
        ("gradient-clipping", "unknown flag (did you mean max_grad_norm?)"),
        ("plan_only", "unknown flag (did you mean dry_run?)"),
        ("global-batch-size", "unknown flag (did you mean global_batch_blocks?)"),
        ("eval-iters", "unknown flag; use --eval_blocks N, in blocks (batches x blocks per batch)"),
        ("micro_batch", "unknown flag (did you mean per_device_train_batch_size?)"),
        ("restarts", "unknown flag; start the command by `python3 -m tools.supervise --restarts N -- COMMAND`"),
        ("fsdp", "DeepSpeed shards the training, see --deepspeed"),
        (
            "tf32",
            "unknown flag; pass other fields of the Trainer by --trainer_arguments NAME=VALUE",
        ),
        (
            "use_cache",
            "unknown flag (did you mean use_cpu?); pass other fields of the Trainer by --trainer_arguments NAME=VALUE",
        ),
        ("save_only_model", "a checkpoint without optimizer states cannot be resumed; use --export_every_tokens N"),
    ],
)
def test_names_of_other_tools_and_earlier_versions_lead_to_a_flag(word: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_pretrain_arguments("", [f"--{word}", "1"])
    assert caught.value.problems[0].partition(": ")[2] == problem
