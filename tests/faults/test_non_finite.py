"""State that is not finite is never saved: the run ends with the last good checkpoint named, or goes back to it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from pretraining.runs.checksums import COMPLETE_NAME, is_known_finite, read_complete, record_file, write_manifest
from pretraining.runs.run_folder import complete_checkpoints, optimizer_shards
from tests.conftest import PROJECT_DIR, Done, assert_one_error
from tests.programs.launching import events, figures, train, try_to_train

pytestmark = pytest.mark.launch

SCRIPT = "tests/faults/drivers/nan_weight_run.py"
FLAGS = ["--max_steps", 8, "--save_steps", 2, "--save_total_limit", 2, "--eval_strategy", "no"]
ROLLBACK = ["--on_spike", "rollback"]
NORM = "model.layers.0.input_layernorm.weight"  # the first of its sub-group


def train_with_nan(
    store: Path, run_dir: Path, *flags: object, nan: list[tuple[int, int, str]], ranks: str = "2 ranks"
) -> Done:
    env = {"NAN": json.dumps(nan)}
    return try_to_train(ranks, store, run_dir, *FLAGS, *flags, script=SCRIPT, env=env)


@pytest.fixture(scope="module")
def undisturbed(training_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    train("2 ranks", training_store, run_dir, *FLAGS)
    return run_dir


def saved(run_dir: Path) -> list[str]:
    checkpoints = complete_checkpoints(run_dir)
    assert all(is_known_finite(folder) for folder in checkpoints)
    assert len(list(run_dir.glob("checkpoint-*"))) == len(checkpoints)
    return [folder.name for folder in checkpoints]


@pytest.mark.guarantee("Weights that are not finite are never saved; the last good checkpoint stays.")
def test_a_run_whose_state_is_not_finite_ends_unsaved_and_resumes(
    undisturbed: Path, training_store: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    done = train_with_nan(training_store, run_dir, nan=[(6, 1, "moment")])  # where a save is due, which looks by itself
    assert done.returncode == 2
    found = f"at step 6, exp_avg of {NORM} of process 1 is not finite (NaN or Inf)"
    assert_one_error(done, found, f"the last good checkpoint is {run_dir}/checkpoint-4; ")
    assert saved(run_dir) == ["checkpoint-2", "checkpoint-4"]
    assert [event["step"] for event in events(run_dir, "non-finite state")] == [6]
    assert not (run_dir / "model").exists()
    train("2 ranks", training_store, run_dir, *FLAGS)
    assert figures(run_dir) == figures(undisturbed), "nothing of it was saved"


def test_below_zero_3_what_is_not_finite_is_named_by_its_parameter(training_store: Path, tmp_path: Path) -> None:
    """Process 1 has the second half of 160 numbers of norms: its fourth is in the third norm."""
    flags = ["--deepspeed", PROJECT_DIR / "ds_config_zero1.json", "--bf16", "true"]
    done = train_with_nan(training_store, tmp_path / "run", *flags, nan=[(2, 1, "moment")])
    assert_one_error(done, "at step 2, exp_avg of model.layers.1.input_layernorm.weight of process 1 is not finite")
    assert saved(tmp_path / "run") == []


def test_a_run_goes_back_in_place_to_its_last_finite_checkpoint(training_store: Path, tmp_path: Path) -> None:
    """And is then one that never read the blocks."""
    run_dir, other = tmp_path / "run", tmp_path / "other"
    flags = ["--save_steps", 3, *ROLLBACK]
    # The loss of step 5 is NaN, so it is skipped and looked at; that of step 6 is not, but it is to be saved.
    done = train_with_nan(training_store, run_dir, *flags, nan=[(4, 0, "weight"), (6, 1, "moment")])
    assert done.returncode == 0, done.output[-4000:]
    assert events(run_dir, "rollback", "non-finite state") == [
        {"step": 5, "event": "non-finite state", "state": "lm_head.weight of process 0"},
        {"step": 5, "event": "rollback", "to_step": 3, "rollback": 1},
        {
            "step": 6,
            "event": "non-finite state",
            "state": f"exp_avg of {NORM} of process 1",
        },
        {"step": 6, "event": "rollback", "to_step": 3, "rollback": 2},
    ]
    assert saved(run_dir) == ["checkpoint-6", "checkpoint-8"]
    skipped = {"SKIPPED": json.dumps([[3 * 8, 5 * 8], [6 * 8, 8 * 8]])}
    train("2 ranks", training_store, other, *FLAGS, *flags, script="tests/faults/drivers/poisoned_run.py", env=skipped)
    assert figures(run_dir) == figures(other)
    models = [folder / "model/model.safetensors" for folder in (run_dir, other)]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_rollbacks_from_what_is_not_finite_are_limited(training_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    nan, flags = [(4, 0, "moment"), (4, 0, "master")], [*ROLLBACK, "--max_rollbacks", 1]
    done = train_with_nan(training_store, run_dir, *flags, nan=nan, ranks="1 rank")
    assert done.returncode == 2
    assert_one_error(done, "--max_rollbacks 1: at step 4, ", f"the last good checkpoint is {run_dir}/checkpoint-2; ")
    assert saved(run_dir) == ["checkpoint-2"]


@pytest.mark.parametrize(
    "flags", [["--export_every_tokens", 3 * 512], pytest.param(["--sample_steps", 3], marks=pytest.mark.long)]
)
def test_what_is_not_finite_is_found_before_it_is_used(
    flags: list[object], training_store: Path, tmp_path: Path
) -> None:
    done = train_with_nan(training_store, tmp_path / "run", *flags, nan=[(3, 0, "master")], ranks="1 rank")
    assert done.returncode == 2
    assert_one_error(
        done,
        f"at step 3, fp32 master weight of {NORM} of process 0 is not finite",
        "checkpoint-2; ",
    )
    assert not (tmp_path / "run/exports").exists()


def test_a_model_that_is_not_finite_is_not_exported(training_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = ["--save_strategy", "no", *ROLLBACK]
    done = train_with_nan(training_store, run_dir, *flags, nan=[(8, 0, "weight")], ranks="1 rank")
    assert done.returncode == 2
    assert_one_error(
        done,
        "--on_spike rollback: at step 8, ",
        "is not finite (NaN or Inf)",
        "no good checkpoint was saved; start again",
    )
    assert not list(run_dir.glob("model*"))


def test_a_checkpoint_of_before_is_looked_at_when_it_is_loaded(training_store: Path, tmp_path: Path) -> None:
    """It does not record whether it is finite, so it is unknown; a finite one is resumed from."""
    run_dir = tmp_path / "run"
    train("1 rank", training_store, run_dir, *FLAGS)
    before = figures(run_dir)
    shutil.rmtree(run_dir / "checkpoint-8")
    checkpoint = run_dir / "checkpoint-6"
    write_again(checkpoint)
    assert "finite" not in read_complete(checkpoint)
    assert not is_known_finite(checkpoint)
    (shard,) = optimizer_shards(checkpoint)
    content = torch.load(shard, weights_only=False)
    good = shard.read_bytes()
    content["optimizer_state_dict"]["optimizer_state_dict"]["state"][0]["exp_avg_sq"][3] = torch.inf
    torch.save(content, shard)
    write_again(checkpoint)
    done = try_to_train("1 rank", training_store, run_dir, *FLAGS)
    assert done.returncode == 2
    assert_one_error(done, f"--resume {checkpoint}: exp_avg_sq of model.embed_tokens.weight of process 0 is not finite")
    shard.write_bytes(good)
    write_again(checkpoint)
    train("1 rank", training_store, run_dir, *FLAGS)
    assert figures(run_dir) == before


def write_again(checkpoint: Path) -> None:
    """complete.json of what is there, as versions before this wrote it."""
    was = read_complete(checkpoint)
    files = [
        record_file(checkpoint, path) for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE_NAME
    ]
    write_manifest(checkpoint, files, step=was["step"], num_processes=was["num_processes"])


def test_what_memory_had_behind_a_parameter_is_not_its_state(training_store: Path, tmp_path: Path) -> None:
    """Of 1,024 numbers three processes hold 342 each, two of them padding, which nothing initializes."""
    env = {"NAN": json.dumps([[1, 2, "padding"]])}
    flags = [*FLAGS, "--global_batch_tokens", 6 * 64, "--max_steps", 2, "--export", "false"]
    done = train("3 ranks", training_store, tmp_path / "run", *flags, script=SCRIPT, env=env)
    assert "padding is NaN" in done.output
    assert saved(tmp_path / "run") == ["checkpoint-2"]
