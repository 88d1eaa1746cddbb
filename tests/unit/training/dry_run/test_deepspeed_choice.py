"""--deepspeed auto: which flags stay, which choice is kept, and where its config is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pretraining.cli.arguments.pretrain import PretrainArguments, parse_pretrain_arguments
from pretraining.errors import UserError
from pretraining.planning.layout import MachineSpec
from pretraining.planning.zero.choice import CONFIGS
from pretraining.training.config.layout import planned_machine
from pretraining.training.dry_run import deepspeed_choice
from pretraining.training.dry_run.deepspeed_choice import (
    asked_flags,
    choose,
    config_path,
    record_of,
    with_choice,
    with_planned_choice,
)
from tests.conftest import PROJECT_DIR


def arguments(*words: str) -> PretrainArguments:
    return parse_pretrain_arguments("", ["--deepspeed", "auto", "--model", "llama_345m", *words])


def eight(flags: PretrainArguments) -> MachineSpec:
    machine = parse_pretrain_arguments("", ["--dry_run", "--gpu_type", "h100", "--num_gpus", "8"]).plan
    return planned_machine(machine)


def test_the_micro_batch_is_open_only_with_auto() -> None:
    name = "per_device_train_batch_size"
    assert arguments().trainer[name] is None
    assert arguments(f"--{name}", "none").trainer[name] is None
    assert arguments(f"--{name}", "2").trainer[name] == 2
    named = ["--deepspeed", str(PROJECT_DIR / "ds_config.json")]
    assert parse_pretrain_arguments("", named).trainer[name] == 1
    assert parse_pretrain_arguments("", [*named, f"--{name}", "none"]).trainer[name] == 1
    with pytest.raises(UserError, match="the former plans both; remove the latter"):
        arguments(f"--{name}", "auto")


def test_a_choice_keeps_the_global_batch() -> None:
    flags = {"deepspeed": "ds_config.json", "activation_checkpointing": True, "per_device_train_batch_size": 4}
    chosen = with_choice(arguments(), flags)
    assert chosen.trainer["per_device_train_batch_size"] == 4
    assert chosen.trainer.get("gradient_accumulation_steps") is None, "it follows from --global_batch_tokens"
    by_steps = with_choice(arguments("--global_batch_tokens", "none", "--gradient_accumulation_steps", "8"), flags)
    assert by_steps.trainer["gradient_accumulation_steps"] == 2
    given = with_choice(arguments("--per_device_train_batch_size", "2"), flags)
    assert given.trainer["per_device_train_batch_size"] == 2


def test_every_config_is_a_file_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(CONFIGS) == sorted(path.name for path in PROJECT_DIR.glob("ds_config*.json"))
    monkeypatch.chdir(PROJECT_DIR)
    assert config_path("ds_config.json") == "ds_config.json"
    monkeypatch.chdir(tmp_path)
    Path("ds_config.json").write_text("of somebody else")
    assert config_path("ds_config.json") == str(PROJECT_DIR / "ds_config.json")


def test_a_recorded_config_is_found_wherever_the_project_is_by_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = arguments("--dry_run", "--gpu_type", "h100", "--num_gpus", "8")
    machine = eight(plan)
    monkeypatch.chdir(tmp_path)
    flags = record_of(choose(plan, machine, None))["flags"]
    assert flags["deepspeed"] == "ds_config_zero1.json"
    monkeypatch.setattr(deepspeed_choice, "PROJECT_DIR", tmp_path / "moved")
    assert with_choice(plan, flags).trainer["deepspeed"] == str(tmp_path / "moved/ds_config_zero1.json")


def test_the_record_has_the_flags_to_type_and_the_next_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_DIR)
    plan = arguments("--dry_run", "--gpu_type", "h100", "--num_gpus", "8")
    record = record_of(choose(plan, eight(plan), None))
    assert json.loads(json.dumps(record)) == record
    assert record["flags"]["deepspeed"] == "ds_config_zero1.json"
    assert record["chosen"].startswith("--deepspeed ds_config_zero1.json --per_device_train_batch_size 16 ")
    assert record["runner_up"].startswith("--deepspeed ds_config.json ")
    planned, notes = with_planned_choice(plan, eight(plan), None)
    assert planned.trainer["deepspeed"] == "ds_config_zero1.json"
    assert notes[0] == f"--deepspeed auto: {record['chosen']}"


def test_a_recorded_choice_is_kept_for_the_same_flags_and_processes(tmp_path: Path) -> None:
    machine = eight(arguments())
    asked = asked_flags(arguments(), machine)
    choice = {"flags": {"deepspeed": "x"}, "chosen": "x", "runner_up": None}
    (tmp_path / "run.json").write_text(json.dumps({"identity": {}, "deepspeed_choice": {**choice, "asked": asked}}))
    (tmp_path / "metrics.jsonl").touch()
    assert deepspeed_choice._recorded(tmp_path, asked) == choice
    for other in (
        asked_flags(arguments("--loss_tiles", "8"), machine),
        asked_flags(arguments("--gpu_memory_limit", "20GB"), machine),
        asked_flags(arguments("--assumed_network_gbits", "100"), machine),
        asked_flags(arguments("--per_device_train_batch_size", "2"), machine),
        asked_flags(arguments("--per_device_eval_batch_size", "2"), machine),
        asked_flags(arguments("--activation_checkpointing_kwargs", '{"every_n_layers": 2}'), machine),
        asked_flags(arguments(), replace(machine, num_processes=4)),
    ):
        assert deepspeed_choice._recorded(tmp_path, other) is None
    assert deepspeed_choice._recorded(tmp_path / "new", asked) is None


def test_a_problem_of_all_configs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_DIR)
    with pytest.raises(UserError, match="--global_batch_tokens 1000: is not a multiple of"):
        choose(arguments("--global_batch_tokens", "1000"), eight(arguments()), None)
