import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.arguments.trainer import FIXED, GENERIC_FLAG, REJECTED, TRAINER_DEFAULTS, TrainerArguments
from pretraining.cli.flags import flags_of
from pretraining.errors import UserError
from tests.conftest import run

OURS = ("use_cpu", "output_dir", "deepspeed", "per_device_train_batch_size", "bf16", "gradient_accumulation_steps")
OURS += ("push_to_hub",)
# What differs from the Trainer's own defaults on purpose.
CHANGED = {
    "num_train_epochs",
    "learning_rate",
    "warmup_steps",
    "weight_decay",
    "adam_beta2",
    "per_device_eval_batch_size",
    "logging_steps",
    "save_total_limit",
    "eval_strategy",
    "eval_steps",
    "report_to",
    "project",
    "hub_private_repo",
    "hub_strategy",
    "ddp_timeout",
    *FIXED,
}


@pytest.fixture(scope="module")
def fields() -> dict[str, dataclasses.Field]:
    from transformers import TrainingArguments

    return {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}


def parsed(*words: str) -> dict[str, Any]:
    return parse_pretrain_arguments("", words).trainer


def problems(*words: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parsed(*words)
    return list(caught.value.problems)


def test_every_flag_is_a_field_with_the_same_default_unless_it_is_changed_on_purpose(
    fields: dict[str, dataclasses.Field],
) -> None:
    names = {flag.name for flag in flags_of(TrainerArguments)} - {GENERIC_FLAG}
    assert names - fields.keys() == set()
    assert REJECTED.keys() & names == set()
    found = {
        name
        for name, default in TRAINER_DEFAULTS.items()
        if name not in OURS
        and fields[name].default is not dataclasses.MISSING
        and str(getattr(fields[name].default, "value", fields[name].default)) != str(default)
    }
    assert found == CHANGED


def test_a_repository_alone_is_pushed_to() -> None:
    assert parsed()["push_to_hub"] is False
    assert parsed("--hub_model_id", "alice/x")["push_to_hub"] is True
    assert parsed("--push_to_hub")["push_to_hub"] is True
    (problem,) = problems("--hub_model_id", "alice/x", "--push_to_hub", "false")
    assert problem == "--hub_model_id alice/x --push_to_hub false: contradict each other; remove one of them"


def test_our_defaults_have_the_types_of_their_flags() -> None:
    for flag in flags_of(TrainerArguments):
        if flag.default is None:
            texts = ["none"]
        else:
            texts = flag.default if isinstance(flag.default, list) else [str(flag.default)]
        assert flag.value(texts) == flag.default, flag.name


def test_what_is_rejected_is_a_field(fields: dict[str, dataclasses.Field]) -> None:
    assert REJECTED.keys() - fields.keys() == set()


def test_other_fields_are_read_by_their_type(tmp_path: Path) -> None:
    words = [
        "tf32=false",
        "logging_first_step=true",
        "torch_empty_cache_steps=5",
        "hub_revision=main",
        "log_level=info",
    ]
    expected = {"tf32": False, "logging_first_step": True, "torch_empty_cache_steps": 5, "hub_revision": "main"}
    expected["log_level"] = "info"
    found = parsed("--trainer_arguments", *words)
    assert {name: found[name] for name in expected} == expected
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("trainer_arguments: {tf32: false, torch_empty_cache_steps: 5, hub_revision: main}\n")
    found = parsed("--recipe", str(recipe), "--dry_run")
    assert (found["tf32"], found["torch_empty_cache_steps"], found["hub_revision"]) == (False, 5, "main")
    assert GENERIC_FLAG not in found


def test_fields_that_are_given_again_add_to_those_before(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("trainer_arguments: {tf32: false, torch_empty_cache_steps: 5, hub_revision: null}\n")
    words = ["torch_empty_cache_steps=6", "--trainer_arguments", "logging_first_step=true"]
    found = parsed("--recipe", str(recipe), "--dry_run", "--trainer_arguments", *words)
    assert (found["tf32"], found["torch_empty_cache_steps"], found["logging_first_step"]) == (False, 6, True)
    assert found["hub_revision"] is None, "not the text null"
    recipe.write_text("trainer_arguments: {logging_first_step: null}\n")
    expected = "logging_first_step: cannot be null; pass a value or remove it"
    assert problems("--recipe", str(recipe)) == [f"--trainer_arguments {expected}"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--per_device_train_batch_size", "Auto"], "expects a whole number or auto, not 'Auto'"),
        (
            ["--logging_strategy", "epoch"],
            "'epoch' is not one of no, steps; epochs follow each other without an end here: use steps and "
            "--logging_steps N",
        ),
    ],
)
def test_a_wrong_value_leads_to_a_right_one(flags: list[str], problem: str) -> None:
    assert problems(*flags) == [f"{flags[0]}: {problem}"]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("fsdp=full_shard", "fsdp: DeepSpeed shards the training, see --deepspeed"),
        ("do_train=true", "do_train: has no effect: this program trains, evaluates and tests"),
        ("seed=3", "seed: use --seed"),
        ("tf33=true", "tf33: transformers.TrainingArguments has no such field (did you mean tf32?)"),
        ("torch_empty_cache_steps=often", "torch_empty_cache_steps: expects a whole number, not 'often'"),
        ("{", "{: is neither NAME=VALUE nor a JSON object"),
    ],
)
def test_a_wrong_field_is_one_line(setting: str, problem: str) -> None:
    assert problems("--trainer_arguments", setting) == [f"--trainer_arguments {problem}"]


def test_the_trainer_takes_our_defaults(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    values = {**TRAINER_DEFAULTS, "deepspeed": None, "output_dir": str(tmp_path), "bf16": False, "report_to": []}
    values |= {"gradient_accumulation_steps": 1, "use_cpu": True, "eval_strategy": "no"}
    assert TrainingArguments(**values).learning_rate == 3e-4


def test_no_tracker_is_an_empty_list(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    trackers = parsed("--report_to", "none")["report_to"]
    assert trackers == []
    assert TrainingArguments(output_dir=str(tmp_path), report_to=trackers, use_cpu=True).report_to == []


@pytest.mark.parametrize("program", ["pretrain.py", "finetune.py", "generate.py", "preprocess.py"])
def test_help_is_short(program: str) -> None:
    """About three screens: no group has more than 75 lines of 80 columns."""
    text = run("python3", program, "--help", env={"COLUMNS": "80"}).stdout
    assert "%%" not in text
    groups = text.split("\n\n")
    assert max(group.count("\n") for group in groups) <= 75
    assert max(map(len, text.partition("options:")[2].splitlines())) <= 80
