"""Whole starts of pretrain.py that must fail: one line, exit code not 0, no traceback, nothing overwritten."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from pretraining.machine.memory import available_host_bytes
from tests.conftest import PROJECT_DIR, assert_one_error, python, run
from tests.launch.launching import training_flags, try_to_train

pytestmark = pytest.mark.launch


def test_two_ranks_report_a_mistake_once(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("deepspeed", sample_store, tmp_path / "run", "--global_batch_tokens", 100)
    assert_one_error(done, "--global_batch_tokens 100: is no multiple of 256", "give 256")
    assert not (tmp_path / "run/run.json").exists()


def test_debug_shows_the_traceback(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("python", sample_store, tmp_path / "run", "--global_batch_tokens", 100, "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_more_processes_than_the_machine_has_places(sample_store: Path, tmp_path: Path) -> None:
    """Without a GPU a few processes may share a core, with a warning; the first of them is enough to see it."""
    cores = os.cpu_count() or 1
    places = torch.cuda.device_count() or cores
    most = places if torch.cuda.is_available() else 4 * cores
    size = {"RANK": "0", "WORLD_SIZE": f"{most + 1}", "LOCAL_WORLD_SIZE": f"{most + 1}"}
    done = run(*python("pretrain.py", *training_flags(sample_store, tmp_path / "run")), env=size)
    assert_one_error(done, f"--num_gpus={most + 1}: this machine has", f"start with --num_gpus={places}")


def test_a_model_that_this_machine_cannot_hold(sample_store: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available() or available_host_bytes() > 100e9:
        pytest.skip("this machine can hold Llama-2-7B")
    done = run(*python("pretrain.py", "--dataset", sample_store, "--output_dir", tmp_path / "run"))
    assert_one_error(done, "--model llama2_7b", "no GPU is here and", "GB available", "make quickstart")


def test_no_blocks_yet_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    done = run(*python("pretrain.py", "--dataset", tmp_path / "blocks"), env=env)
    assert_one_error(done, "is no block store (manifest.json is missing); make one with preprocess.py")


def test_a_mistake_that_only_a_later_rank_finds_is_told(tmp_path: Path) -> None:
    done = run(*python("preprocess.py", "--block_length", 1), env={"RANK": "1", "WORLD_SIZE": "2"})
    assert_one_error(done, "--block_length 1: must be in [2, 16777216]")


def test_a_launcher_that_loses_zero3_is_stopped(sample_store: Path, tmp_path: Path) -> None:
    launcher = ["accelerate", "launch", "--cpu", "--num_processes", 2, "--num_machines", 1]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", PROJECT_DIR / "pretrain.py"]
    done = run(*launcher, *training_flags(sample_store, tmp_path / "run"))
    assert done.returncode != 0
    assert "--deepspeed: ZeRO stage 3 is not on (found None)" in done.errors[0]
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_tasks_of_srun_do_not_train_alone(sample_store: Path, tmp_path: Path) -> None:
    flags = training_flags(sample_store, tmp_path / "run")
    done = run(*python("pretrain.py", *flags), env={"SLURM_NTASKS": "2", "SLURM_PROCID": "0"})
    assert_one_error(done, "srun: its tasks would each train alone")


def test_an_attention_that_is_not_installed(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("python", sample_store, tmp_path / "run", "--attention_implementation", "flash_attention_2")
    assert_one_error(done, "--attention_implementation flash_attention_2: ")


def test_a_damaged_test_split_is_found_before_the_training(sample_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(sample_store, store)
    (path,) = store.glob("data/test-*.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    assert_one_error(try_to_train("python", store, tmp_path / "run"), str(path), "its manifest says")
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_recipe_with_typos_reports_all_of_them(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("modle: llama2_7b\nlearning_rate: fast\nlr_scheduler_type: cosin\n")
    done = run(*python("pretrain.py", "--recipe", recipe))
    assert done.returncode == 2
    assert len(done.errors) == 3
    assert f"{recipe}:1: modle: there is no flag of this name (did you mean model?)" in done.errors[0]
    assert "did you mean cosine?" in done.errors[2]


def test_a_trainer_flag_that_the_trainer_refuses(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("python", sample_store, tmp_path / "run", "--load_best_model_at_end", "--save_steps", 7)
    assert_one_error(done, "Trainer flags: ")


def test_a_finished_run_is_not_overwritten(sample_store: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("{}")
    before = sorted(tmp_path.iterdir())
    done = try_to_train("python", sample_store, tmp_path, "--resume", "never")
    assert_one_error(done, "holds a run already", "leave out --resume")
    assert sorted(tmp_path.iterdir()) == before
