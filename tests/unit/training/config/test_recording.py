"""run.json has all that it takes to tell a run, and to make it again."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.system.files import sha256_of
from pretraining.system.host import machine_inventory
from tests.conftest import PROJECT_DIR
from tests.programs.launching import BLOCK_LENGTH, BLOCKS_PER_STEP, train, training_flags

pytestmark = pytest.mark.launch


@pytest.fixture(scope="module")
def run_dir(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("recorded") / "run"
    train("2 ranks", sample_store, run_dir, "--hub_token", "hf_secret", "--max_steps", 2, "--save_steps", 1)
    return run_dir


def record_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "run.json").read_text())


def test_every_flag_is_there_as_it_was_resolved(run_dir: Path, sample_store: Path) -> None:
    recorded = record_of(run_dir)["arguments"]
    flags = [str(word) for word in training_flags(sample_store, run_dir, "--max_steps", 2, "--save_steps", 1)]
    arguments = parse_pretrain_arguments("", flags)
    groups = (arguments.model, arguments.data, arguments.optimization)
    for group in (*groups, arguments.durability, arguments.observability, arguments.plan):
        for name, value in vars(group).items():
            assert recorded[name] == json.loads(json.dumps(value, default=str)) or name == "compile_layers", name
    assert recorded["compile_layers"] is False, "so short a run is not compiled unasked"
    for name, value in arguments.trainer.items():
        assert name in recorded
        assert value is None or name == "bf16" or recorded[name] == value, name
    assert recorded["gradient_accumulation_steps"] == BLOCKS_PER_STEP // 2 // 2
    assert "hf_secret" not in (run_dir / "run.json").read_text()


def test_deepspeeds_config_is_there_as_it_was_given_and_as_it_was_resolved(run_dir: Path) -> None:
    record = record_of(run_dir)
    assert record["ds_config"] == json.loads((PROJECT_DIR / "ds_config.json").read_text())
    resolved = record["ds_config_resolved"]
    assert '"auto"' not in json.dumps(resolved)
    assert resolved["train_batch_size"] == BLOCKS_PER_STEP
    assert resolved["train_micro_batch_size_per_gpu"] * resolved["gradient_accumulation_steps"] * 2 == BLOCKS_PER_STEP
    assert resolved["zero_optimization"]["param_persistence_threshold"] == 10 * 32, "as the Trainer says"
    assert resolved["zero_optimization"]["zero_quantized_weights"] is False, "what nobody gave is there too"


def test_machine_versions_code_and_data_are_there(run_dir: Path, sample_store: Path) -> None:
    record = record_of(run_dir)
    names = re.findall(r"^[a-z][\w.-]*", (PROJECT_DIR / "requirements.txt").read_text(), re.MULTILINE)
    assert set(names) <= set(record["packages"])
    assert {"num_processes": 2, **machine_inventory()}.items() <= record["hardware"].items()
    assert record["hardware"]["memory_bytes"] > 1e9
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT_DIR, capture_output=True, text=True, check=False)
    assert record["git"] is None or record["git"]["commit"] == commit.stdout.strip()
    assert record["identity"]["data"][0]["manifest_sha256"] == sha256_of(sample_store / "manifest.json")
    assert record["identity"]["global_batch_tokens"] == BLOCKS_PER_STEP * BLOCK_LENGTH


def test_the_command_is_that_of_the_launcher_without_its_other_words(tmp_path: Path) -> None:
    """Whatever a shell, mpirun or a script was told besides is not ours to show."""
    program = tmp_path / "program.py"
    lines = ["import subprocess, sys", f"sys.path.insert(0, {str(PROJECT_DIR)!r})"]
    lines += ["from pretraining.runs.command import command", "print(command())"]
    program.write_text("\n".join(lines))
    launcher = tmp_path / "mpirun"
    launcher.write_text("import subprocess, sys; subprocess.run([sys.executable, *sys.argv[3:]])")
    words = [launcher, "-x", "MLFLOW_TRACKING_URI=https://me:hunter2@host", program, "--hub_token", "sec ret"]
    words += ["--seed", "7", "--max_tokens=9", "--run_name", f"hf_{'x' * 34}"]
    inner = f"echo hunter2 > /dev/null && {shlex.join([sys.executable, *map(str, words)])}"
    env = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    done = subprocess.run(["bash", "-c", inner], capture_output=True, text=True, check=True, env=env)
    flags = "--hub_token '***' --seed 7 --max_tokens=9 --run_name '***'"
    assert done.stdout == f"mpirun -n 2 program.py {flags}\n"
    alone = [sys.executable, program, "--seed", "7"]
    assert subprocess.check_output(list(map(str, alone)), text=True) == "python3 program.py --seed 7\n"
    task = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "RANK": "1", "WORLD_SIZE": "2"}
    started = subprocess.check_output(list(map(str, alone)), text=True, env={**os.environ, **task})
    assert started == "srun --ntasks=2 program.py --seed 7\n", "whose own process is not above its tasks"
