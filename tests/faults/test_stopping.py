"""A run that is asked to stop ends with one checkpoint, and resumes identically to an uninterrupted run."""

import fcntl
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pretraining.errors import STOPPED_EXIT_CODE
from pretraining.runs.run_folder import complete_checkpoints
from tests.conftest import HANG_SECONDS, PROJECT_DIR, Done, wait_until
from tests.programs.launching import (
    HAND_OVER,
    events,
    figures,
    launcher,
    leave_listening,
    records,
    train,
    training_flags,
    try_to_train,
)

pytestmark = pytest.mark.launch

FLAGS = ["--max_steps", 7, "--save_steps", 3, "--eval_steps", 3, "--dataloader_num_workers", 1]
# The first evaluation is the best then, and decides which weights are exported.
FLAGS += ["--load_best_model_at_end", "--metric_for_best_model", "loss", "--greater_is_better", "true"]
TIMES = ("_seconds", "seconds_left", "_per_gpu", "_runtime", "_per_second", "_bytes", "logged_at")


@pytest.fixture(scope="module")
def whole_run(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train("2 ranks", sample_store, run_dir, *FLAGS)
    return run_dir


def interrupt(name: str, store: Path, run_dir: Path, *flags: object, **env: str) -> Done:
    script = "tests/faults/drivers/interrupted_run.py"
    return try_to_train(name, store, run_dir, *FLAGS, *flags, script=script, env=env)


def assert_stopped(done: Done, run_dir: Path, step: int, reason: str) -> None:
    assert done.returncode == STOPPED_EXIT_CODE, done.output[-4000:]
    assert "Traceback" not in done.output
    assert f"stopped at step {step} ({reason}); checkpoint-{step} saved in " in done.stderr
    assert done.stderr.count(" saved in ") == 1
    assert len(complete_checkpoints(run_dir)) == len(list(run_dir.glob("checkpoint-*")))
    assert complete_checkpoints(run_dir)[-1] == run_dir / f"checkpoint-{step}"
    assert events(run_dir, "stop")[-1] == {"step": step, "event": "stop", "reason": reason}
    assert not (run_dir / "model").exists()
    assert not (run_dir / "STOP").exists()


def assert_resumes(store: Path, run_dir: Path, whole_run: Path) -> None:
    train("2 ranks", store, run_dir, *FLAGS)
    assert len(untimed(whole_run)) == 7 + 5  # evaluations after steps 3, 6 and 7, of the best weights, and the test
    assert figures(run_dir) == figures(whole_run)
    assert untimed(run_dir) == untimed(whole_run)
    assert weights(run_dir) == weights(whole_run)


def untimed(run_dir: Path) -> list[dict[str, Any]]:
    """Every record of a run, in order, without events and without what measures time."""
    lines = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    kept = (record for record in lines if "event" not in record)
    return [{name: value for name, value in record.items() if not name.endswith(TIMES)} for record in kept]


def weights(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "model/model.safetensors").read_bytes()).hexdigest()


@pytest.mark.guarantee("A stopped run equals an uninterrupted one, including the pending evaluation.")
def test_a_run_that_was_stopped_again_and_again_equals_an_uninterrupted_run(
    whole_run: Path, sample_store: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    run_dir = tmp_path / "run"
    done = try_to_train("2 ranks", sample_store, run_dir, *FLAGS, "--max_hours", 0.0005)
    assert_stopped(done, run_dir, 1, "--max_hours")
    assert len(events(run_dir, "stop")) == 1
    assert "--max_hours 0.0005: saves and stops 3 steps before " in done.stderr
    stops = [
        ("micro step:2", "kill(me, SIGTERM)", 2, "SIGTERM"),
        ("batch:2", f"Path('{run_dir}/STOP').touch()", 3, "the file STOP"),  # within the evaluation after step 3
        ("step:6", "kill(me, SIGUSR1)", 6, "SIGUSR1"),  # after which an evaluation is due
    ]
    stopped_at = [1]
    for place, what, step, reason in stops:
        (run_dir / "STOP").touch()  # late, so it must not stop the next start
        done = interrupt("2 ranks", sample_store, run_dir, AT=place, DO=what, BY_RANK="1")
        assert_stopped(done, run_dir, step, reason)
        stopped_at.append(step)
        assert [event["step"] for event in events(run_dir, "stop")] == stopped_at
        names = {path.name for path in run_dir.glob("checkpoint-*")}
        assert names == {f"checkpoint-{kept}" for kept in stopped_at[-2:]}, "each stop saves one; two are kept"
        assert len(records(run_dir, "eval_loss")) == (step == 6), "the next start makes the pending evaluation first"
        assert len(records(run_dir)) == step
    assert_resumes(sample_store, run_dir, whole_run)
    record_property("lost_steps", 0)


@pytest.mark.long  # before the last step: test_a_run_that_was_stopped_again_and_again_equals_an_uninterrupted_run
def test_a_run_that_is_stopped_when_it_is_trained(whole_run: Path, sample_store: Path, tmp_path: Path) -> None:
    """While it waits, after the last step, for what never comes: there is nothing left to save."""
    what = "Timer(1, kill, (me, SIGTERM)).start(); wait_in_a_collective()"
    done = interrupt("2 ranks", sample_store, tmp_path / "run", AT="end", DO=what)
    assert done.returncode == STOPPED_EXIT_CODE
    assert "error: stopped (SIGTERM); rerun to evaluate and export" in done.stderr
    assert_resumes(sample_store, tmp_path / "run", whole_run)


def test_who_interrupts_twice_does_not_want_to_wait(sample_store: Path, tmp_path: Path) -> None:
    what = "kill(me, SIGINT); sleep(1.1); kill(me, SIGINT); sleep_for_ever()"
    done = interrupt("1 rank", sample_store, tmp_path / "run", AT="step:2", DO=what)
    assert done.returncode == 128 + signal.SIGINT
    assert "error: interrupted twice: exiting without saving" in done.stderr
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def interrupt_deepspeed(store: Path, run_dir: Path, **env: str) -> tuple[int, str]:
    """As in a terminal: in a separate group. It returns when the last process that could speak has ended."""
    words = [*launcher("deepspeed"), "tests/faults/drivers/interrupted_run.py", *training_flags(store, run_dir, *FLAGS)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(PROJECT_DIR), **env}
    command = subprocess.Popen(
        [str(word) for word in words],
        cwd=PROJECT_DIR,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output, _ = command.communicate(timeout=HANG_SECONDS)
    return command.returncode, output


# What a run makes of a signal: test_a_run_that_was_stopped_again_and_again_equals_an_uninterrupted_run; that deepspeed
# passes it on: test_supervise.py, test_a_signal_reaches_every_rank_and_nothing_is_left_running.
@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("group(us, SIGINT)", "SIGINT"),  # Ctrl-C
        ("kill(launcher, SIGTERM)", "SIGTERM"),
        ("group(us, SIGUSR1)", "SIGUSR1"),  # sbatch --signal=USR1@600: it kills the launcher
    ],
)
def test_what_deepspeed_passes_on_is_one_stop(
    what: str, reason: str, whole_run: Path, sample_store: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    code, output = interrupt_deepspeed(sample_store, run_dir, AT="step:2", DO=what)
    assert code != 0
    assert f"stopped at step 2 ({reason}); checkpoint-2 saved in " in output
    assert [path.name for path in run_dir.glob("checkpoint-*")] == ["checkpoint-2"]
    assert len(events(run_dir, "stop")) == 1
    if reason == "SIGINT":
        assert_resumes(sample_store, run_dir, whole_run)


def processes_of(run_dir: Path) -> list[str]:
    """Command lines that name it."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in lines if str(run_dir) in line]


# That ranks stop and save when the deepspeed command is gone: test_orphans.py.
@pytest.mark.parametrize("name", ["python", pytest.param("deepspeed", marks=pytest.mark.long)])
@pytest.mark.guarantee("A closed terminal loses no step.")
def test_a_run_saves_and_stops_when_its_terminal_is_closed(name: str, sample_store: Path, tmp_path: Path) -> None:
    """Of a shell in a terminal; the hangup kills shell, deepspeed command and launcher, and nothing can be written."""
    run_dir = tmp_path / "run"
    flags = training_flags(sample_store, run_dir, *FLAGS, "--max_steps", 100_000, "--save_steps", 100_000)
    words = [
        *launcher(name),
        *([HAND_OVER] if name == "python" else []),
        "pretrain.py",
        *flags,
        "--eval_strategy",
        "no",
    ]
    command = shlex.join(str(word) for word in words if word != "--load_best_model_at_end")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    environment |= leave_listening(tmp_path) if name == "python" else {}
    ours, theirs = os.openpty()
    shell = subprocess.Popen(
        ["bash", "-c", f"{command}; true"],
        cwd=PROJECT_DIR,
        env=environment,
        start_new_session=True,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    os.set_blocking(ours, False)

    def has_trained() -> bool:
        with suppress(BlockingIOError):
            os.read(ours, 65536)  # a terminal that nobody reads would hold the run up
        log = run_dir / "metrics.jsonl"
        return log.is_file() and log.read_text().count('"loss"') > 1

    wait_until(has_trained)
    os.close(ours)
    assert shell.wait(HANG_SECONDS) == -signal.SIGHUP
    wait_until(lambda: not processes_of(run_dir))
    (stop,) = events(run_dir, "stop")
    assert stop["reason"] == "SIGHUP"
    assert complete_checkpoints(run_dir) == [run_dir / f"checkpoint-{stop['step']}"]


# test_orphans.py, test_a_rank_that_waits_for_a_killed_one_ends_before_deepspeed_kills_it
@pytest.mark.long
def test_when_a_rank_is_killed_all_end(
    sample_store: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("killed", 1)
    code, _ = interrupt_deepspeed(sample_store, tmp_path / "run", AT="micro step:2", DO="kill(me, SIGKILL)")
    assert code != 0
