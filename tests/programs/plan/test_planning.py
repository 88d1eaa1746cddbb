"""The plan from the command line: on any machine, without data, without a trace on the disk."""

import re
from pathlib import Path

import pytest

from pretraining.errors import STOPPED_EXIT_CODE
from pretraining.system.host import available_host_bytes
from tests.conftest import PROJECT_DIR, TINY_RUN, assert_one_error, python
from tests.programs.launching import BLOCK_LENGTH, figures, run_forked, train, training_flags, try_to_train

pytestmark = pytest.mark.launch


def test_a_plan_needs_neither_gpu_nor_data_nor_launcher_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = ["--recipe", PROJECT_DIR / "recipes/llama2_7b.yaml", "--deepspeed", PROJECT_DIR / "ds_config.json"]
    words = [*recipe, "--dry_run", "--num_gpus", 8, "--gpu_type", "h200", "--host_memory", "1TB"]
    done = run_forked(*python("pretrain.py", *words), cwd=tmp_path)
    assert done.returncode == 0, done.output
    for part in ("plan: llama2_7b on 8 x h200", "no blocks are here", "6,738,415,616", "96% of 148.4", "it fits"):
        assert part in done.stdout
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_does_not_fit_ends_with_an_error_after_its_table(tmp_path: Path) -> None:
    config = ["--deepspeed", PROJECT_DIR / "ds_config.json"]
    words = [*config, "--dry_run", "--gpu_type", "a100", "--host_memory", "512GB"]
    done = run_forked(*python("pretrain.py", *words), cwd=tmp_path)
    assert_one_error(done, "--model llama2_7b: does not fit 1 x a100_80gb", "80.8 GB")
    assert "what fits" in done.stdout
    assert "--gpu_type a100: planned for a100_80gb" in done.stdout
    assert "--deepspeed ds_config_offload_optimizer.json" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--gpu_type", "a100", "--fp8", "--compile_layers", "true"],
            "--fp8: needs GPUs of the Ada or Hopper generation",
        ),
        (["--gpu_type", "V100-16GB"], "does not fit 1 x v100_16gb"),
    ],
)
def test_a_plan_knows_what_an_older_gpu_cannot_do(flags: list[str], said: str, tmp_path: Path) -> None:
    config = ["--deepspeed", PROJECT_DIR / "ds_config.json", "--host_memory", "16GB"]
    done = run_forked(*python("pretrain.py", *config, "--dry_run", *flags), cwd=tmp_path)
    assert_one_error(done, said)
    assert "V100-16GB" not in flags or "fits; this GPU has no bf16, try --fp16 true" in done.stdout


def test_a_plan_that_fits_names_the_host_memory_that_it_does_not_know(tmp_path: Path) -> None:
    recipe = ["--recipe", PROJECT_DIR / "recipes/llama2_7b.yaml", "--deepspeed", PROJECT_DIR / "ds_config.json"]
    done = run_forked(*python("pretrain.py", *recipe, "--dry_run", "--num_gpus", 8, "--gpu_type", "h200"), cwd=tmp_path)
    assert re.search(r"^it fits, with \d+\.\d\d GB of host memory$", done.stdout, re.MULTILINE)


def test_a_plan_with_blocks_knows_its_steps(sample_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [*TINY_RUN, "--dataset", sample_store, "--output_dir", run_dir, "--global_batch_tokens", 512]
    done = run_forked(*python("pretrain.py", *words, "--dry_run", "--gpu_type", "rtx_4090"))
    assert done.returncode == 0, done.output
    assert "no blocks" not in done.stdout
    assert "use --max_tokens N" not in done.stdout, "the number of steps is known"
    assert not run_dir.exists()


@pytest.mark.guarantee("A run that does not fit is rejected with flags that fit.")
def test_a_start_that_does_not_fit_is_refused_and_forced(sample_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    small = {"script": "tests/programs/drivers/small_machine_run.py", "env": {"AVAILABLE_MEMORY": "1000000"}}
    flags = ["--max_steps", 1, "--eval_strategy", "no", "--save_strategy", "no"]
    refused = try_to_train("1 rank", sample_store, run_dir, *flags, **small)
    assert refused.returncode == 2
    assert "of memory; no GPU is here and 999 kB available; no change of flags fits" in refused.errors[0]
    assert not run_dir.exists()
    forced = try_to_train("1 rank", sample_store, run_dir, *flags, "--force", **small)
    assert forced.returncode == 0, forced.output
    assert "started all the same (--force)" in forced.output
    assert "planned: " in forced.output


# Each trial is a start of every process; with one rank it is a fork. Two ranks, whose trials are started, one of them
# out of memory, are long: how such a trial ends is in test_a_measurement_out_of_memory_is_one_error_and_leaves_nothing,
# what follows in test_after_a_trial_out_of_memory_fewer_blocks_are_tried.
@pytest.mark.parametrize(("ranks", "num_blocks"), [("1 rank", 2), pytest.param("2 ranks", 4, marks=pytest.mark.long)])
@pytest.mark.guarantee("The largest micro batch is found, and trains like one that was given.")
def test_the_largest_micro_batch_is_found_and_the_training_is_that_with_the_number_given(
    ranks: str, num_blocks: int, sample_store: Path, tmp_path: Path
) -> None:
    if available_host_bytes() < 4e9:
        pytest.skip("two ranks of a trial need 4 GB of free memory")
    limited = {
        "script": "tests/programs/drivers/out_of_memory_run.py",
        "env": {"MAX_BLOCKS": "2", "TMPDIR": str(tmp_path)} | ({"FORKED_TRIALS": "1"} if ranks == "1 rank" else {}),
    }
    flags = ["--lr_scheduler_type", "constant", "--max_steps", 3, "--save_steps", 3, "--eval_strategy", "no"]
    flags += ["--global_batch_tokens", num_blocks * BLOCK_LENGTH * int(ranks[0])]
    found = train(ranks, sample_store, tmp_path / "found", *flags, "--per_device_train_batch_size", "auto", **limited)
    lines = ["2 blocks at a time: fits", f"2 blocks at a time, {num_blocks // 2} micro steps"]
    for line in (["4 blocks at a time: out of memory"] if num_blocks == 4 else []) + lines:
        assert f"--per_device_train_batch_size auto: {line}" in found.output
    train(ranks, sample_store, tmp_path / "given", *flags, "--per_device_train_batch_size", 2)
    assert figures(tmp_path / "found") == figures(tmp_path / "given")
    assert {path.name for path in tmp_path.iterdir()} == {"found", "given"}
    # A run that goes on keeps its number, without trying again.
    flags += ["--max_steps", 4, "--per_device_train_batch_size", "auto"]
    resumed = train(ranks, sample_store, tmp_path / "found", *flags, **limited)
    assert "blocks at a time: " not in resumed.output
    assert len(figures(tmp_path / "found")) == 4


@pytest.mark.long  # which line is told: test_only_what_ran_out_of_memory_does_not_fit
def test_a_trial_that_fails_otherwise_is_told_in_one_line(sample_store: Path, tmp_path: Path) -> None:
    limited = {"script": "tests/programs/drivers/out_of_memory_run.py", "env": {"MAX_BLOCKS": "many"}}
    done = try_to_train("1 rank", sample_store, tmp_path / "run", "--per_device_train_batch_size", "auto", **limited)
    assert_one_error(done, "a trial of the run failed: ", "invalid literal for int()")
    assert not (tmp_path / "run").exists()


def test_what_was_planned_stands_beside_what_was_measured(sample_store: Path, tmp_path: Path) -> None:
    done = train("2 ranks", sample_store, tmp_path / "run", "--profile_plan", env={"TMPDIR": str(tmp_path)})
    rows = {line[2:32].strip(): line[32:].split() for line in done.stdout.splitlines() if line.startswith("  ")}
    for name in ("weights", "gradients", "master weights", "optimizer moments", "all of these"):
        planned, measured = rows[name]
        assert planned == measured != "0"
    assert float(rows["tokens/s/GPU"][-1].replace(",", "")) > 0
    assert float(rows["peak of all processes, GB"][-1]) > 0.1
    assert list(tmp_path.iterdir()) == []


PROFILE = ["--profile_plan", "--save_steps", 2]


def test_a_measurement_out_of_memory_is_one_error_and_leaves_nothing(sample_store: Path, tmp_path: Path) -> None:
    limited = {"script": "tests/programs/drivers/out_of_memory_run.py", "env": {"MAX_BLOCKS": "1"}}
    done = try_to_train("1 rank", sample_store, tmp_path / "run", *PROFILE, **limited)
    assert_one_error(done, "--profile_plan: out of memory; use a smaller --per_device_train_batch_size")
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_that_is_stopped_saves_nothing(sample_store: Path, tmp_path: Path) -> None:
    env = {"AT": "step:2", "DO": "kill(me, SIGTERM)"}
    script = "tests/faults/drivers/interrupted_run.py"
    done = try_to_train("1 rank", sample_store, tmp_path / "run", *PROFILE, script=script, env=env)
    assert done.returncode == STOPPED_EXIT_CODE, done.output
    assert "warning: stopped at step 2 (SIGTERM); rerun to measure" in done.stderr
    assert "measured:" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_of_the_current_folder_writes_beside_it(sample_store: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    flags = [*training_flags(sample_store, Path(), *PROFILE), "--deepspeed", PROJECT_DIR / "ds_config.json"]
    done = run_forked(*python("pretrain.py", *flags), cwd=tmp_path / "run")
    assert done.returncode == 0, done.output
    assert done.stdout.startswith("measured: ")
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [Path("run")]
