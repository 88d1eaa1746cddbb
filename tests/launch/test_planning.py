"""The plan from the command line: on any machine, without data, without a trace on the disk."""

from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR, TINY_RUN, assert_one_error, python, run
from tests.launch.launching import try_to_train

pytestmark = pytest.mark.launch


def test_a_plan_needs_neither_gpu_nor_data_nor_launcher_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = ["--recipe", PROJECT_DIR / "recipes/llama2_7b.yaml", "--deepspeed", PROJECT_DIR / "ds_config.json"]
    words = [*recipe, "--plan_only", "--num_gpus", 8, "--gpu_type", "h200", "--host_memory", "1TB"]
    done = run(*python("pretrain.py", *words), cwd=tmp_path)
    assert done.returncode == 0, done.output
    for part in ("plan: llama2_7b on 8 x h200", "no blocks are here", "6,738,415,616", "of 141.0", "it fits"):
        assert part in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_does_not_fit_ends_with_an_error_after_its_table(tmp_path: Path) -> None:
    config = ["--deepspeed", PROJECT_DIR / "ds_config.json"]
    words = [*config, "--plan_only", "--gpu_type", "a100_80gb", "--host_memory", "512GB"]
    done = run(*python("pretrain.py", *words), cwd=tmp_path)
    assert_one_error(done, "--model llama2_7b: does not fit 1 x a100_80gb", "80.0 GB")
    assert "what fits" in done.stdout
    assert "--deepspeed ds_config_offload_optimizer.json" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_plan_with_blocks_knows_its_steps(sample_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [*TINY_RUN, "--dataset", sample_store, "--output_dir", run_dir, "--global_batch_tokens", 512]
    done = run(*python("pretrain.py", *words, "--plan_only", "--gpu_type", "rtx_4090"))
    assert done.returncode == 0, done.output
    assert "no blocks" not in done.stdout
    assert "not known" not in done.stdout
    assert not run_dir.exists()


def test_a_start_that_does_not_fit_is_refused_and_forced(sample_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    small = {"script": "tests/launch/small_machine_run.py", "env": {"AVAILABLE_MEMORY": "1000000000"}}
    flags = ["--max_steps", 1, "--eval_strategy", "no", "--save_strategy", "no"]
    refused = try_to_train("2 ranks", sample_store, run_dir, *flags, **small)
    assert refused.returncode == 2
    assert "of memory; no GPU is here and 1.0 GB available; no change of flags fits" in refused.errors[0]
    assert not run_dir.exists()
    forced = try_to_train("2 ranks", sample_store, run_dir, *flags, "--force", **small)
    assert forced.returncode == 0, forced.output
    assert "--force starts it all the same" in forced.output
    assert "planned: " in forced.output
