"""Whole starts of pretrain.py that must fail: one line, exit code not 0, no traceback, nothing overwritten."""

import os
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pretraining.data.mixture import load_mixture
from pretraining.system.host import available_host_bytes
from pretraining.training.data.dataset import BLOCKS_READ_AT_START
from pretraining.training.data.order import make_order
from tests.conftest import PROJECT_DIR, assert_one_error, python, run
from tests.programs.launching import records, run_forked, training_flags, try_to_train
from tests.unit.training.data.test_dataset import forge

pytestmark = pytest.mark.launch


def test_two_ranks_report_a_mistake_once(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("2 ranks", sample_store, tmp_path / "run", "--global_batch_tokens", 100)
    assert_one_error(done, "--global_batch_tokens 100: is not a multiple of 256", "use 256")
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
    done = run_forked(
        *python(
            "pretrain.py", "--dataset", sample_store, "--global_batch_tokens", 640, "--output_dir", tmp_path / "run"
        )
    )
    assert_one_error(done, "--model llama2_7b", "no GPU is here and", "GB available", "make quickstart")


def test_no_blocks_yet_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    done = run(*python("pretrain.py", "--dataset", tmp_path / "blocks"), env=env)
    assert_one_error(done, "not a block store (manifest.json is missing); run preprocess.py or pass another folder")


def test_a_mistake_that_only_a_later_rank_finds_is_told(tmp_path: Path) -> None:
    code = "import preprocess; from pretraining.cli import program; program.RANK0_GRACE_SECONDS = 0.1; "
    code += "program.run_program(preprocess.main)"
    done = run(sys.executable, "-c", code, "--block_length", 1, env={"RANK": "1", "WORLD_SIZE": "2"})
    assert_one_error(done, "--block_length 1: must be in [2, 16777216]")


@pytest.mark.long  # held by test_a_mistake_is_reported_before_the_slow_imports
def test_a_launcher_that_loses_zero3_is_stopped(sample_store: Path, tmp_path: Path) -> None:
    launcher = ["accelerate", "launch", "--cpu", "--num_processes", 2, "--num_machines", 1]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", PROJECT_DIR / "pretrain.py"]
    done = run(*launcher, *training_flags(sample_store, tmp_path / "run"))
    assert done.returncode != 0
    assert "accelerate launch --cpu: trains without DeepSpeed" in done.errors[0]
    assert not (tmp_path / "run").exists()


def test_a_process_of_a_batch_script_is_not_a_task_of_srun(sample_store: Path, tmp_path: Path) -> None:
    flags = training_flags(sample_store, tmp_path / "run", "--max_steps", 1, "--export", "false")
    done = run_forked(*python("pretrain.py", *flags), env={"SLURM_NTASKS": "2", "SLURM_PROCID": "0"})
    assert done.returncode == 0
    assert "SLURM_NTASKS=2: this process trains alone; `srun python3 pretrain.py` trains with all" in done.output
    assert "x 1 process, ZeRO-3" in done.output


def test_an_attention_that_is_not_installed(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("python", sample_store, tmp_path / "run", "--attention_implementation", "flash_attention_2")
    assert_one_error(done, "--attention_implementation flash_attention_2: ")


def test_a_damaged_test_split_is_found_before_the_training(sample_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(sample_store, store)
    (path,) = store.glob("data/test-*.parquet")
    path.write_bytes(path.read_bytes()[:-100])
    assert_one_error(try_to_train("fork", store, tmp_path / "run"), str(path), "the manifest has")
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("num_workers", [2, pytest.param(0, marks=pytest.mark.long)])
def test_an_id_that_one_rank_reads_in_mid_training_ends_the_run_in_one_line(
    sample_store: Path, tmp_path: Path, num_workers: int
) -> None:
    """Exit code 2 of both, no traceback of the one that waits, nothing that hangs."""
    blocks = make_order(load_mixture([str(sample_store)], revision=None), seed=42).block_ids(np.arange(16, 40))
    at_start = np.linspace(0, 700, BLOCKS_READ_AT_START, dtype=np.int64)
    row = next(int(block) for block in blocks[2:] if block not in at_start)
    store = forge(sample_store, tmp_path / "store", [row], 9000)
    flags = ["--dataloader_num_workers", num_workers, "--save_steps", 2, "--eval_strategy", "no"]
    done = try_to_train("2 ranks", store, tmp_path / "run", *flags)
    assert_one_error(
        done, f"data/train-00000-of-00001.parquet row {row} cannot be used (token id 9,000", "tools.verify"
    )
    assert done.returncode == 2
    assert [record["step"] for record in records(tmp_path / "run")][:2] == [1, 2]


@pytest.mark.parametrize("name", ["blocks/tokenizer/tokenizer.json", "blocks/data/train-00000-of-00001.parquet"])
def test_what_is_not_as_it_was_is_one_line(sample_store: Path, tmp_path: Path, name: str) -> None:
    store = tmp_path / "blocks"
    shutil.copytree(sample_store, store)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content.replace(b"the", b"eht", 1) if name.endswith("json") else b"?" * len(content))
    done = try_to_train("1 rank", store, tmp_path / "run")
    assert_one_error(done, f"{tmp_path / name} ", "SHA-256", "folder again, or preprocess again")
    assert done.returncode == 2


@pytest.mark.parametrize("flags", [[], ["--dry_run"]])
def test_text_or_nothing_as_a_data_set(tmp_path: Path, flags: list[str]) -> None:
    text = PROJECT_DIR / "data/sample/news.jsonl"
    cases = {
        str(text): f"python3 preprocess.py --data_files {shlex.quote(str(text))} --output_dir blocks",
        "": "a path or name, not ''",
    }
    for dataset, part in cases.items():
        done = run_forked(*python("pretrain.py", "--model", "quickstart", "--dataset", dataset, *flags))
        assert_one_error(done, "--dataset", part)


def test_a_recipe_with_typos_reports_all_of_them(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("modle: llama2_7b\nlearning_rate: fast\nlr_scheduler_type: cosin\n")
    done = run(*python("pretrain.py", "--recipe", recipe))
    assert done.returncode == 2
    assert len(done.errors) == 3
    assert f"{recipe}:1: modle: unknown flag (did you mean model?)" in done.errors[0]
    assert "did you mean cosine?" in done.errors[2]


def test_a_trainer_flag_that_the_trainer_refuses(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("fork", sample_store, tmp_path / "run", "--load_best_model_at_end", "--save_steps", 7)
    assert_one_error(done, "Trainer flags: ")


def test_a_finished_run_is_not_overwritten(sample_store: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("{}")
    before = sorted(tmp_path.iterdir())
    done = try_to_train("fork", sample_store, tmp_path, "--resume", "never")
    assert_one_error(done, "already contains a run", "drop --resume")
    assert sorted(tmp_path.iterdir()) == before
