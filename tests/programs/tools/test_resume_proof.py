"""tools.resume_proof as a user starts it: it proves what holds, and finds what does not."""

import random
import re
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR, TINY_MODEL, TINY_RUN, assert_one_error, run, run_fine
from tests.unit.runs.test_run_folder import make_checkpoint
from tools.killable_run import KillableRun
from tools.resume_proof import Kill, Pace, plan_kills, split_command_line, wait_for_moment

PROOF = [sys.executable, "-m", "tools.resume_proof"]
TRAINING = [*TINY_RUN, "--model_overrides", *TINY_MODEL, "attention_dropout=0.1", "--global_batch_tokens", 512]
TRAINING += ["--max_steps", 10, "--save_steps", 2, "--eval_steps", 4, "--per_device_train_batch_size", 2]


@pytest.mark.launch
@pytest.mark.long
@pytest.mark.parametrize("config", ["ds_config.json", "ds_config_zero2.json"])
def test_a_run_that_is_killed_is_the_run_that_is_not(config: str, sample_store: Path, tmp_path: Path) -> None:
    # This seed kills one of the ranks, at a save after the beginning.
    flags = ["--kills", 1, "--seed", 144, "--num_gpus", 2, "--output_dir", tmp_path / "proof"]
    training = [*TRAINING, "--deepspeed", PROJECT_DIR / config, "--dataset", sample_store]
    done = run_fine(*PROOF, *flags, "--", *training)
    assert re.search(r"^undisturbed: 10 steps in \d+ s, the first one after \d+ s: ", done.stderr, re.M)
    assert re.search(r"^kill 1 of 1: a rank after step \d+.*; resuming from step \d+$", done.stderr, re.M)
    verdict = r"1 kills \(\d during a save\), 10 steps: losses, gradient norms, evaluations and weights bit-equal\n"
    assert re.search(verdict + "steps repeated: ", done.stderr)
    assert (tmp_path / "proof/killed.log").read_text().count("exported model") >= 1


@pytest.mark.launch
@pytest.mark.long
def test_a_resume_that_forgets_something_is_found(sample_store: Path, tmp_path: Path) -> None:
    words = ["--launcher", "python3", "--output_dir", tmp_path / "proof", "--", *TRAINING, "--dataset", sample_store]
    done = run(
        sys.executable, "-m", "tests.programs.drivers.forgetful_proof", *words, env={"PYTHONPATH": str(PROJECT_DIR)}
    )
    assert done.returncode == 1
    assert_one_error(done, "1 kills (", "10 steps: the runs differ: step ", ", relative difference ")


def test_the_kills_are_spread_over_the_run() -> None:
    pace = Pace(num_steps=100, start=10.0, step=1.0, longest_save=2.0, end=5.0)
    kills = plan_kills(60, pace, random.Random(0), has_parts=True)
    assert {kill.part for kill in kills} == {"everything", "a rank", "the launcher"}
    assert [sum(kill.moment == moment for kill in kills) for moment in ("start", "step", "save")] == [10, 30, 20]
    steps = [kill.step for kill in kills]
    assert steps == sorted(steps), "each is reached, however much the one before cost"
    assert max(after - before for before, after in zip([0, *steps], [*steps, 100], strict=True)) < 15
    assert all(kill.step < 100 for kill in kills if kill.moment == "save"), "there is a save after it"
    assert all(kill.seconds <= {"start": 10, "step": 5, "save": 2}[kill.moment] for kill in kills)


def test_after_the_last_save_a_kill_that_waits_for_one_comes_at_the_end(tmp_path: Path) -> None:
    """Otherwise a run that was killed in its last save would not be killed any more."""
    run_dir = tmp_path / "run"
    make_checkpoint(run_dir, 10)
    log = run_dir / "metrics.jsonl"
    script = f'import pathlib, time; pathlib.Path({str(log)!r}).write_text(\'{{"step": 10, "loss": 1}}\\n\')'
    script += "; time.sleep(600)"
    run = KillableRun([sys.executable, "-c", script], run_dir, Path("none.py"))
    run.start()
    pace = Pace(num_steps=10, start=1.0, step=1.0, longest_save=1.0, end=1.0)
    assert wait_for_moment(run, Kill("save", 3, 0.0, "everything"), pace)
    run.kill("everything", random.Random(0))


def test_the_recipe_and_what_follows_is_for_the_training() -> None:
    words = ["--kills", "3", "--recipe", "a.yaml", "--seed", "1", "--", "--max_steps", "5"]
    assert split_command_line(words) == (["--kills", "3", "--seed", "1"], ["--recipe", "a.yaml", "--max_steps", "5"])
    assert split_command_line(["--recipe=a.yaml"]) == ([], ["--recipe=a.yaml"])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--kills", "0"], ["--kills 0: must be in [1, 1e6]"]),
        (["--launcher", "python3", "--num_gpus", "2"], ["--num_gpus 2: python3 starts one process"]),
        (["--output_dir", str(PROJECT_DIR)], [f"--output_dir {PROJECT_DIR}: cannot be created (File exists)"]),
        (["--", "--resume", "never"], ["--resume: this tool restarts the run itself"]),
        (["--", "--max_stepz", "3"], ["--max_stepz: unknown flag"]),
        (["--recipe", "none.yaml"], ["--recipe none.yaml: cannot be read"]),
    ],
)
def test_a_mistake_is_one_line(words: list[str], parts: list[str]) -> None:
    assert_one_error(run(*PROOF, *words), *parts)


def test_it_needs_no_torch() -> None:
    run_fine(sys.executable, "-c", "import sys; sys.modules['torch'] = None; import tools.resume_proof")
