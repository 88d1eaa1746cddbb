"""Killed at any instant, by rank or all at once, in a step or in a save: the run that goes on is the one never killed.

With everything on that has a state: accumulation, dropout, data workers, a mixture read more than once, evaluation.
NUM_KILLS makes it longer.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pretraining.runs.history import read_records
from pretraining.runs.run_folder import METRICS_NAME, checkpoint_step, complete_checkpoints
from tests.conftest import PROJECT_DIR, TINY_MODEL, python
from tests.programs.launching import figures, records, run_forked_fine, train, try_to_train

pytestmark = pytest.mark.launch

NUM_KILLS = int(os.environ.get("NUM_KILLS", "4"))
STEPS = 12
FLAGS = ["--max_steps", STEPS, "--save_steps", 4, "--eval_steps", 5, "--dataloader_num_workers", 1]
FLAGS += ["--model_overrides", *TINY_MODEL, "attention_dropout=0.1"]
TRAINING_SECONDS = 1.2  # from the first step to the end, or more
CHANGES = 50  # of the disk, in a save and a half


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two small stores: 96 blocks are more than each of them has."""
    folder = tmp_path_factory.mktemp("stores")
    for name, most in (("long", 1310), ("short", 1200)):
        words = ["--block_length", 64, "--split", "40,30,30", "--max_characters", most, "--output_dir", folder / name]
        run_forked_fine(*python("preprocess.py", *words))
    return [f"long={folder}/long:0.7", f"short={folder}/short:0.3"]


def contents(run_dir: Path) -> tuple[object, ...]:
    weights = hashlib.sha256((run_dir / "model/model.safetensors").read_bytes()).hexdigest()
    evaluations = [record[key] for key in ("eval_loss", "test_loss") for record in records(run_dir, key)]
    return figures(run_dir), evaluations, weights


def lost_steps(run_dir: Path) -> int:
    """Steps that have to be made again."""
    known = read_records(run_dir) if (run_dir / METRICS_NAME).exists() else ()
    reached = max((record["step"] for record in known if "loss" in record), default=0)
    return reached - max((checkpoint_step(folder) or 0 for folder in complete_checkpoints(run_dir)), default=0)


def kill_of(generator: random.Random) -> list[object]:
    """Whom, and after how many seconds or changes of the disk."""
    ranks = generator.choice([[0], [1], [0, 1]])
    if generator.random() < 0.5:
        return [ranks, round(generator.uniform(0, TRAINING_SECONDS), 3), None]
    return [[0], None, generator.randint(1, CHANGES)]


@pytest.mark.parametrize(
    ("precision", "config"),
    [
        ("fp32", "ds_config.json"),
        pytest.param("bf16", "ds_config.json", marks=pytest.mark.long),
        pytest.param("bf16", "ds_config_zero1.json", marks=pytest.mark.long),
    ],
)
@pytest.mark.guarantee(
    "A run killed at any instant, in a step or a save, by rank or all at once, equals an uninterrupted one, bit by bit."
)
def test_a_run_killed_at_any_instant_is_one_that_was_not(
    precision: str, config: str, mixture: list[str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    flags = [*FLAGS, "--dataset", *mixture, "--bf16", str(precision == "bf16").lower()]
    flags += ["--deepspeed", PROJECT_DIR / config]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train("2 ranks", "unused", whole, *flags)
    assert records(whole)[-1]["epoch/long"] > 1
    assert records(whole)[-1]["epoch/short"] > 1
    generator = random.Random(f"{precision} 73")  # of fp32: first of one rank in a save, then of both
    kills, ends = [], []
    for _ in range(NUM_KILLS // 2):
        kills.append(kill_of(generator))
        env = {"KILL": json.dumps(kills[-1])}
        done = try_to_train("2 ranks", "unused", killed, *flags, script="tests/faults/drivers/killed_run.py", env=env)
        ends.append(done.returncode)
        if done.returncode == 0:
            break
        record_property("lost_steps", lost_steps(killed))
    train("2 ranks", "unused", killed, *flags)
    assert contents(killed) == contents(whole), kills
    assert [record["step"] for record in records(killed)] == list(range(1, STEPS + 1))
    num_kills = sum(code != 0 for code in ends)
    record_property("killed", num_kills)
    assert num_kills >= NUM_KILLS // 4, (kills, ends)
