"""--deepspeed auto trains as the config and flags that it chose, on every process, and keeps its choice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.training.config.layout import this_machine
from pretraining.training.dry_run.dry_run import local_mixture
from pretraining.training.dry_run.plan import make_plan
from tests.conftest import PROJECT_DIR
from tests.programs.launching import figures, run_forked, train, training_flags, try_to_train

pytestmark = pytest.mark.launch
FLAGS = ["--max_steps", 3, "--eval_steps", 3, "--save_steps", 2]
NONE = "none"
LONE_CHOICE = "tests/programs/plan/lone_choice_run.py"


def record(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "run.json").read_text())


def auto_flags(*flags: object) -> list[object]:
    """Of a run whose micro batch is open: `training_flags` of the tests set one, which the last word beats."""
    return [*FLAGS, "--deepspeed", "auto", "--per_device_train_batch_size", NONE, *flags]


@pytest.fixture(scope="module")
def auto_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("auto") / "run"
    done = train("2 ranks", sample_store, run_dir, *auto_flags())
    assert done.stderr.count("--deepspeed auto: --deepspeed ds_config") == 1, "one process speaks"
    assert "--deepspeed auto: next would be --deepspeed ds_config" in done.stderr
    return run_dir


@pytest.mark.guarantee("--deepspeed auto trains to the bit as the run with the config and flags that it chose.")
def test_a_chosen_run_is_the_named_one_to_the_bit(auto_run: Path, sample_store: Path, tmp_path: Path) -> None:
    choice = record(auto_run)["deepspeed_choice"]
    flags = [word for name, value in choice["flags"].items() for word in (f"--{name}", str(value).lower())]
    train("2 ranks", sample_store, tmp_path / "run", *FLAGS, *flags)
    assert figures(tmp_path / "run") == figures(auto_run)
    name = "model/model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (auto_run / name).read_bytes()
    named = record(tmp_path / "run")
    assert named["deepspeed_choice"] is None
    assert record(auto_run)["ds_config"] == named["ds_config"] == json.loads(Path(flags[1]).read_text())
    assert record(auto_run)["arguments"]["deepspeed"] == choice["flags"]["deepspeed"]


def test_a_resumed_run_keeps_its_choice(auto_run: Path, sample_store: Path, tmp_path: Path) -> None:
    """With other flags it is ranked again: test_a_recorded_choice_is_kept_for_the_same_flags_and_processes."""
    choice = record(auto_run)["deepspeed_choice"]
    run_dir = shutil.copytree(auto_run, tmp_path / "run")
    for name in ("checkpoint-3", "model"):
        shutil.rmtree(run_dir / name)
    changed = record(run_dir)
    kept = choice["flags"] | {"activation_checkpointing": True}  # which no ranking would choose here
    changed["deepspeed_choice"] |= {"flags": kept, "chosen": "what another version chose"}
    (run_dir / "run.json").write_text(json.dumps(changed))
    done = train("2 ranks", sample_store, run_dir, *auto_flags())
    assert "--deepspeed auto: what another version chose (as the run was started)" in done.stderr
    assert record(run_dir)["arguments"]["activation_checkpointing"] is True


def test_accumulation_leads_to_zero_1_whose_checkpoint_takes_what_was_planned(
    sample_store: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    flags = [*FLAGS, "--deepspeed", "auto", "--per_device_train_batch_size", 1, "--max_steps", 1, "--export", "false"]
    done = train("2 ranks", sample_store, run_dir, *flags, "--gpu_memory_limit", "3.1GB")
    assert "--deepspeed auto: --deepspeed ds_config_zero1.json --per_device_train_batch_size 1 " in done.stderr
    assert "--gpu_memory_limit: no GPU is here" in done.stderr
    assert record(run_dir)["deepspeed_choice"]["asked"]["gpu_memory_limit"] == "3.1GB"
    words = [*flags, "--deepspeed", PROJECT_DIR / "ds_config_zero1.json", "--activation_checkpointing", "false"]
    arguments = parse_pretrain_arguments("", [str(word) for word in training_flags(sample_store, run_dir, *words)])
    machine = replace(this_machine(), num_processes=2, num_local_processes=2)
    planned = make_plan(arguments, machine, local_mixture(arguments)).disk.checkpoint_bytes
    folder = run_dir / "checkpoint-1"
    files = [*folder.glob("*.safetensors"), *folder.rglob("*optim_states.pt")]
    assert planned == pytest.approx(sum(path.stat().st_size for path in files), rel=0.01)


@pytest.mark.long
def test_processes_of_several_machines_get_the_choice_of_rank_0_in_their_meeting(
    sample_store: Path, tmp_path: Path
) -> None:
    flags = auto_flags("--max_steps", 1, "--export", "false", "--eval_strategy", "no", "--save_strategy", "no")
    done = train("4 ranks", sample_store, tmp_path / "run", *flags, script=LONE_CHOICE, env={"LOCAL_SIZE": "2"})
    assert done.stderr.count("--deepspeed auto: --deepspeed ds_config") == 1
    assert record(tmp_path / "run")["deepspeed_choice"]["asked"]["num_local_processes"] == 2


def test_where_rank_0_finds_no_choice_all_machines_end(sample_store: Path, tmp_path: Path) -> None:
    env = {"LOCAL_SIZE": "2", "FAILS": "1"}
    done = try_to_train("4 ranks", sample_store, tmp_path / "run", *auto_flags(), script=LONE_CHOICE, env=env)
    assert done.returncode == 2
    assert "nothing can be planned; try another model" in done.stderr
    assert "Traceback" not in done.output


def test_a_plan_names_what_auto_would_choose() -> None:
    words = ["--dry_run", "--gpu_type", "h100", "--num_gpus", 8, "--model", "llama_345m", "--deepspeed", "auto"]
    done = run_forked("python3", PROJECT_DIR / "pretrain.py", *words)
    assert done.returncode == 0, done.output
    text = " ".join(done.stdout.split())
    assert "--deepspeed auto: --deepspeed ds_config_zero1.json --per_device_train_batch_size 16" in text
    assert "next would be --deepspeed ds_config.json" in text
    done = run_forked("python3", PROJECT_DIR / "pretrain.py", *words, "--per_device_train_batch_size", "auto")
    assert "--deepspeed auto --per_device_train_batch_size auto: the former plans both" in done.stderr
