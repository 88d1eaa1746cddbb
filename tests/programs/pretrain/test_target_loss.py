"""--target_loss: a run ends at the step that reaches it, wherever it was interrupted; one that never does fails."""

import json
import math
import shutil
from pathlib import Path

import pytest

from pretraining.errors import TARGET_MISSED_EXIT_CODE
from tests.conftest import Done, assert_one_error
from tests.programs.launching import events, figures, records, train, try_to_train

pytestmark = pytest.mark.launch
WINDOW, NUM_STEPS = 50, 60
FLAGS = ["--max_steps", NUM_STEPS, "--save_steps", 40, "--eval_steps", 1000, "--global_batch_tokens", 256]
FLAGS += ["--per_device_train_batch_size", 4]
# The mean loss falls from 7.27 after step 52 to 7.23 after step 53. Rounding moves it by 0.0007.
TARGET = ["--target_loss", 7.25]


def mean_losses(run_dir: Path) -> dict[int, float]:
    """The mean loss of the window that ends with each step, from the log."""
    losses = [loss for loss, _ in figures(run_dir)]
    return {step: math.fsum(losses[step - WINDOW : step]) / WINDOW for step in range(WINDOW, len(losses) + 1)}


@pytest.fixture(scope="module")
def reached(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    run_dir = tmp_path_factory.mktemp("target") / "reached"
    return run_dir, train("1 rank", sample_store, run_dir, *FLAGS, *TARGET)


@pytest.mark.guarantee("--target_loss ends a run at the first step where the mean loss of 50 steps is below it.")
def test_a_run_ends_where_its_target_is_reached(reached: tuple[Path, Done]) -> None:
    """It has all that the last step of a run has: record, checkpoint, evaluation and export."""
    run_dir, done = reached
    *before, last = mean_losses(run_dir).items()
    assert len(before) >= 1, "the window was full before"
    assert last[1] < 7.25 <= min(mean for _, mean in before)
    assert_ended(run_dir, done)
    assert [record["step"] for record in records(run_dir, "eval_loss")] == [last[0]]
    assert {path.name for path in run_dir.glob("checkpoint-*")} == {"checkpoint-40", f"checkpoint-{last[0]}"}


def assert_ended(run_dir: Path, done: Done) -> None:
    step, mean = list(mean_losses(run_dir).items())[-1]
    (event,) = events(run_dir, "target reached")
    assert event == {"step": step, "event": "target reached", "target_loss": 7.25, "mean_loss": mean}
    assert (
        f"--target_loss 7.25: reached at step {step} (the mean loss of the last 50 steps is {mean:.4f})" in done.stderr
    )
    assert [record["step"] for record in records(run_dir, "test_loss")] == [step]
    assert (run_dir / "model/model.safetensors").is_file()
    for card in (run_dir / "README.md", run_dir / "model/README.md"):
        assert f"Training is finished, after {step} steps." in card.read_text("utf-8")


@pytest.mark.guarantee("A run that is killed and resumed reaches its target at the same step as an uninterrupted one.")
def test_a_killed_run_reaches_its_target_at_the_same_step(
    reached: tuple[Path, Done], sample_store: Path, tmp_path: Path
) -> None:
    """Most of the 50 losses are from before the kill, which leaves a checkpoint of step 40 and a log until step 42."""
    run_dir, log = shutil.copytree(reached[0], tmp_path / "run"), tmp_path / "run/metrics.jsonl"
    shutil.rmtree(run_dir / "model")
    shutil.rmtree(run_dir / f"checkpoint-{len(figures(run_dir))}")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if json.loads(line)["step"] <= 42))
    done = train("1 rank", sample_store, run_dir, *FLAGS, *TARGET)
    assert f"resuming from {run_dir}/checkpoint-40" in done.stderr
    assert figures(run_dir) == figures(reached[0])
    assert_ended(run_dir, done)


def test_a_run_that_has_reached_its_target_only_finishes_when_it_is_started_again(
    reached: tuple[Path, Done], sample_store: Path, tmp_path: Path
) -> None:
    """As after a disk that was full at the export."""
    run_dir = shutil.copytree(reached[0], tmp_path / "run")
    shutil.rmtree(run_dir / "model")
    done = train("1 rank", sample_store, run_dir, *FLAGS, *TARGET)
    assert figures(run_dir) == figures(reached[0])
    assert_ended(run_dir, done)


@pytest.mark.guarantee("A run whose loss never is below --target_loss ends with exit code 3, complete and exported.")
def test_a_run_that_misses_its_target_is_complete_and_fails(
    reached: tuple[Path, Done], sample_store: Path, tmp_path: Path
) -> None:
    """One that has reached another target continues to its end; meanwhile nothing takes its model for the newest."""
    run_dir = shutil.copytree(reached[0], tmp_path / "run")
    earlier = (run_dir / "model/model.safetensors").read_bytes()
    done = try_to_train("1 rank", sample_store, run_dir, *FLAGS, "--target_loss", 0.5)
    assert done.returncode == TARGET_MISSED_EXIT_CODE, done.output[-4000:]
    mean = mean_losses(run_dir)[NUM_STEPS]
    assert_one_error(done, f"--target_loss 0.5: not reached (the mean loss of the last 50 steps is {mean:.4f}); ")
    (event,) = events(run_dir, "target missed")
    assert event == {"step": NUM_STEPS, "event": "target missed", "target_loss": 0.5, "mean_loss": mean}
    assert len(figures(run_dir)) == NUM_STEPS
    assert (run_dir / "model.superseded/model.safetensors").read_bytes() == earlier
    assert (run_dir / "model/model.safetensors").read_bytes() != earlier
    assert [record["step"] for record in records(run_dir, "test_loss")] == [NUM_STEPS]


def test_a_run_too_short_for_the_window_is_rejected(sample_store: Path, tmp_path: Path) -> None:
    done = try_to_train("1 rank", sample_store, tmp_path / "run", "--target_loss", 2)
    assert_one_error(
        done, "--target_loss 2: is compared with the mean loss of 50 steps, and the run has 6; use a longer"
    )
