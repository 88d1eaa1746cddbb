"""tools.supervise: a command is restarted after a crash, not after success, a mistake or a requested stop."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pretraining.errors import STOPPED_EXIT_CODE
from pretraining.system.processes import ProcessHandle, descendants
from pretraining.system.supervision import Restart, attempt_environment, boot_seconds
from tests.conftest import HANG_SECONDS, PROJECT_DIR, assert_one_error, run, wait_until
from tests.programs.launching import (
    HAND_OVER,
    SEARCH_PATH,
    events,
    figures,
    launcher,
    leave_listening,
    records,
    train,
    training_flags,
    try_to_train,
)
from tools import supervise

pytestmark = pytest.mark.launch

SUPERVISE = [sys.executable, "-m", "tools.supervise"]
RANKS = PROJECT_DIR / "tests/faults/drivers/supervised.py"
CRASHING = PROJECT_DIR / "tests/faults/drivers/crashing_run.py"
FLAGS = ["--save_steps", 2, "--eval_strategy", "no"]


@pytest.fixture(scope="module")
def undisturbed(training_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    train("1 rank", training_store, run_dir, *FLAGS, "--save_total_limit", 3)
    return run_dir


def supervised(folder: Path, restart: Restart | None = None) -> dict[str, str]:
    """The environment of a program under a supervisor that keeps its records in `folder`."""
    folder.mkdir(exist_ok=True)
    return attempt_environment(folder, restart)


# Below, ranks that only wait show what each launcher makes of a crash; deepspeed takes a minute to train twice.
@pytest.mark.parametrize("name", ["python", pytest.param("deepspeed", marks=pytest.mark.long)])
@pytest.mark.guarantee("A crashed run is restarted and equals an uninterrupted one.")
def test_a_run_whose_rank_is_killed_ends_like_an_uninterrupted_one(
    name: str,
    undisturbed: Path,
    training_store: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    killed_rank, ended, script = 0, "attempt 1 was killed by SIGKILL", [HAND_OVER, CRASHING]
    env = {"PYTHONPATH": SEARCH_PATH}
    if name == "deepspeed":
        killed_rank, ended, script = 1, "attempt 1 ended with exit code ", [CRASHING]
        undisturbed = tmp_path / "undisturbed"
        train("2 ranks", training_store, undisturbed, *FLAGS)
    else:
        env |= leave_listening(tmp_path)
    command = [*launcher(name), *script, *training_flags(training_store, tmp_path / "run", *FLAGS)]
    env["CRASHES"] = json.dumps([[killed_rank, 5, "SIGKILL"]])
    done = run(*SUPERVISE, "--restarts", 2, "--pause_seconds", 0.1, "--", *command, env=env)
    assert done.returncode == 0, done.output[-6000:]
    assert f"warning: {ended}" in done.stderr
    assert "; restart 1 of 2 in 0.1 s" in done.stderr
    assert f"resuming from {tmp_path}/run/checkpoint-4" in done.stderr
    (event,) = events(tmp_path / "run", "restart")
    assert (event["step"], event["event"], event["restart"]) == (4, "restart", 1)
    assert event["reason"].startswith(ended)
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert figures(tmp_path / "run") == figures(undisturbed)
    record_property("killed", 1)
    record_property("lost_steps", 1)


def test_the_checkpoint_that_was_named_counts_until_there_is_a_newer_one(
    undisturbed: Path, training_store: Path, tmp_path: Path
) -> None:
    flags = [*FLAGS, "--resume", undisturbed / "checkpoint-2"]
    crashes, started_at = {"CRASHES": json.dumps([[0, 3, 7], [0, 5, 7]])}, boot_seconds()

    def attempt(number: int) -> int:
        env = supervised(tmp_path / "supervisor", Restart(number, "a crash", started_at) if number else None)
        script = str(CRASHING.relative_to(PROJECT_DIR))
        return try_to_train(
            "1 rank", training_store, tmp_path / "run", *flags, script=script, env=crashes | env
        ).returncode

    assert [attempt(number) for number in (0, 1, 2)] == [7, 7, 0]
    assert [event["step"] for event in events(tmp_path / "run", "restart")] == [2, 4]
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert figures(tmp_path / "run") == figures(undisturbed)


def test_a_stop_that_was_requested_before_a_crash_is_one_after_it(
    undisturbed: Path, training_store: Path, tmp_path: Path
) -> None:
    """STOP is older than the restarted process, but not than the run."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    shutil.rmtree(run_dir / "checkpoint-6")
    (run_dir / "STOP").touch()
    env = supervised(tmp_path / "supervisor", Restart(1, "a crash", boot_seconds() - 1))
    done = try_to_train("1 rank", training_store, run_dir, *FLAGS, "--save_total_limit", 3, env=env)
    assert done.returncode == STOPPED_EXIT_CODE, done.output[-4000:]
    assert "stopped at step 5 (the file STOP)" in done.stderr


class Supervised:
    """tools.supervise around two ranks of tests/faults/drivers/supervised.py, or around another command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, command: list[object], does: dict[str, int | str], *, restarts: int = 2) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "PYTHONPATH": SEARCH_PATH, "DS_ACCELERATOR": "cpu", "DOES": json.dumps(does)}
        words = [*SUPERVISE, "--restarts", restarts, "--pause_seconds", 0.1, "--", *command]
        self.process = subprocess.Popen(
            [str(word) for word in words], env=env, cwd=PROJECT_DIR, stderr=subprocess.PIPE, text=True
        )

    def start_ranks(self, name: str, does: dict[str, int | str]) -> None:
        self.start([*launcher(name), RANKS, self.folder], does)

    def wait_for_ranks(self) -> list[ProcessHandle]:
        wait_until(lambda: {"0-0", "0-1"} <= self.attempts())
        return descendants(self.process.pid)

    def end(self) -> tuple[int, str]:
        """The exit code and the log."""
        _, log = self.process.communicate(timeout=HANG_SECONDS)
        return self.process.returncode, log

    def attempts(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.json")}

    def signals(self) -> list[str]:
        return [path.read_text() for path in sorted(self.folder.glob("*.signals"))]


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Supervised]:
    ranks = Supervised(tmp_path)
    yield ranks
    for process in descendants(ranks.process.pid):
        os.kill(process.pid, signal.SIGKILL)
    ranks.process.kill()
    ranks.process.wait()


ENDS: dict[str, tuple[dict[str, int | str], int, int]] = {
    "mistake": ({"0-1": 2}, 2, 1),
    "stop": ({"0-0": 75, "0-1": 75}, 75, 1),
    "kill": ({"0-1": "SIGKILL", "1-0": 0, "1-1": 0}, 0, 2),
    "crash": ({"0-0": 1, "1-0": 0, "1-1": 0}, 0, 2),
}
# mpirun starts fastest, and what ranks note of their end does not depend on who has started them. torchrun, which exits
# with 1 in any case, is here for that; deepspeed passes a signal on in
# test_a_signal_reaches_every_rank_and_nothing_is_left_running.
LONG = [("deepspeed", end) for end in ENDS] + [("torchrun", end) for end in ("mistake", "kill", "crash")]


@pytest.mark.parametrize(
    ("name", "end"),
    [
        pytest.param(name, end, marks=pytest.mark.long if (name, end) in LONG else ())
        for name in ("deepspeed", "torchrun", "mpirun")
        for end in ENDS
    ],
)
def test_what_ended_the_ranks_is_known_whatever_their_launcher_exits_with(
    ranks: Supervised, name: str, end: str
) -> None:
    """torchrun exits with 1 in any case; after a crash launchers have the other ranks stop."""
    does, code, num_attempts = ENDS[end]
    ranks.start_ranks(name, does)
    found, log = ranks.end()
    assert found == code, log
    assert {attempt.split("-")[0] for attempt in ranks.attempts()} == {str(number) for number in range(num_attempts)}
    assert log.count("; restart 1 of 2 in 0.1 s") == num_attempts - 1


# Ctrl-C, which deepspeed passes on by itself as well, is the most to get right of the signals that it is sent.
@pytest.mark.parametrize(
    ("name", "sent"),
    [
        pytest.param("deepspeed", "SIGTERM", marks=pytest.mark.long),
        ("deepspeed", "SIGINT"),
        pytest.param("deepspeed", "SIGUSR1", marks=pytest.mark.long),
        pytest.param("torchrun", "SIGUSR1", marks=pytest.mark.long),
        pytest.param("torchrun", "SIGHUP", marks=pytest.mark.long),
        ("mpirun", "SIGUSR1"),
    ],
)
def test_a_signal_reaches_every_rank_and_nothing_is_left_running(ranks: Supervised, name: str, sent: str) -> None:
    """Ranks that are still saving when their launcher has ended are waited for."""
    ranks.start_ranks(name, {})
    processes = ranks.wait_for_ranks()
    ranks.process.send_signal(signal.Signals[sent])
    code, log = ranks.end()
    assert code == STOPPED_EXIT_CODE, log
    assert not any(process.is_alive() for process in processes)
    assert all(sent in received for received in ranks.signals())
    assert all(received.split().count("SIGINT") <= 1 for received in ranks.signals()), "a second one ends it unsaved"
    assert len(ranks.signals()) == 2
    assert ranks.attempts() == {"0-0", "0-1"}


@pytest.mark.parametrize(
    ("does", "is_final"),
    [(75, True), *(pytest.param(*case, marks=pytest.mark.long) for case in ((2, True), (7, False)))],
)
def test_torchrun_does_not_train_again_what_was_stopped(tmp_path: Path, does: int, is_final: bool) -> None:
    """It starts its ranks again whatever they exit with, and exits with 1."""
    command = [*launcher("torchrun"), "--max_restarts=1", RANKS, tmp_path]
    env = {"PYTHONPATH": SEARCH_PATH, "DOES": json.dumps({f"{n}-{rank}": does for n in (0, 1) for rank in (0, 1)})}
    done = run(*command, env=env)
    assert done.returncode == 1, done.output
    line = f"torchrun --max_restarts starts a run again that has ended with exit code {does}: ending"
    assert done.output.count(line) == is_final, done.output


# Of deepspeed: test_orphans.py. The kernel tells the launcher to stop, whichever it is.
@pytest.mark.parametrize("name", [pytest.param("torchrun", marks=pytest.mark.long), "mpirun"])
def test_a_killed_supervisor_takes_its_command_with_it(ranks: Supervised, name: str) -> None:
    ranks.start_ranks(name, {})
    processes = ranks.wait_for_ranks()
    assert len(processes) >= 3, "a launcher and two ranks"
    os.kill(ranks.process.pid, signal.SIGKILL)
    wait_until(lambda: not any(process.is_alive() for process in processes))


def leave_running(ranks: Supervised, seconds: float) -> Path:
    """A command that crashes and leaves a child in another session, as torchrun its ranks; it notes that it ended."""
    log = ranks.folder / "log"
    child = f"import os, time; open({str(log)!r}, 'a').write(f'{{os.getpid()}} '); time.sleep({seconds}); "
    child += f"open({str(log)!r}, 'a').write('ended ')"
    parent = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}], start_new_session=True)"
    parent += f"\nlog = __import__('pathlib').Path({str(log)!r})"
    parent += "\nwhile not log.exists() or not log.read_text().split()[-1].isdigit(): time.sleep(0.02)\nexit(7)"
    ranks.start([sys.executable, "-c", parent.format(child)], {}, restarts=1)
    return log


def test_what_a_crash_leaves_running_is_waited_for_before_the_restart(ranks: Supervised) -> None:
    log = leave_running(ranks, seconds=0.5)
    assert ranks.end()[0] == 7
    assert [word for word in log.read_text().split() if not word.isdigit()] == ["ended", "ended"]
    assert [word.isdigit() for word in log.read_text().split()] == [True, False, True, False]


def test_what_does_not_end_after_a_crash_is_killed(ranks: Supervised, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys.modules[__name__],
        "SUPERVISE",
        [
            sys.executable,
            "-c",
            "from tools import supervise as s; s.CLEANUP_SECONDS = 0.3; s.POLL_SECONDS = 0.1; s.run_program(s.main)",
        ],
    )
    log = leave_running(ranks, seconds=300)
    assert ranks.end()[0] == 7
    pids = log.read_text().split()
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize(
    ("script", "code", "num_attempts"),
    [
        ("exit 0", 0, 1),
        ("exit 2", 2, 1),
        ("exit 3", 3, 1),
        ("exit 130", 130, 1),
        ("exit 7", 7, 4),
        ("kill -KILL $$", 137, 4),
    ],
)
def test_the_exit_code_is_that_of_the_last_attempt_and_pauses_grow(
    ranks: Supervised, script: str, code: int, num_attempts: int
) -> None:
    ranks.start(["sh", "-c", script], {}, restarts=3)
    found, log = ranks.end()
    assert found == code
    pauses = [line.rpartition(" in ")[2] for line in log.splitlines() if "; restart " in line]
    assert pauses == ["0.1 s", "0.2 s", "0.4 s"][: num_attempts - 1]
    assert ("no restart left of 3" in log) == (num_attempts == 4)


def test_the_code_of_an_earlier_program_does_not_count(ranks: Supervised) -> None:
    """The first program ends with a user error, the second one by a signal, which leaves no code."""
    second = f"{sys.executable} {RANKS} {ranks.folder}"
    ranks.start(["sh", "-c", f"{sys.executable} pretrain.py --x; {second}; exit $?"], {"0-0": "SIGKILL", "1-0": 0})
    code, log = ranks.end()
    assert code == 0, log
    assert log.count("; restart 1 of 2 in 0.1 s") == 1


def test_a_process_of_another_user_keeps_no_signal_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sudo starts one; the tests may run as root, who may kill all of them."""
    tried = []

    def kill(pid: int, number: int) -> None:
        tried.append((pid, number))
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with subprocess.Popen(["sleep", "60"]) as first, subprocess.Popen(["sleep", "60"]) as second:
        with monkeypatch.context() as changes:
            changes.setattr(os, "kill", kill)
            supervise.Supervisor([], tmp_path)._pass_on(signal.SIGTERM)
        first.kill()
        second.kill()
    assert {(first.pid, signal.SIGTERM), (second.pid, signal.SIGTERM)} <= set(tried)


def test_a_run_can_be_stopped_between_two_attempts(ranks: Supervised) -> None:
    ranks.start(["sh", "-c", f"echo >> {ranks.folder}/attempts; exit 7"], {}, restarts=20)
    wait_until(lambda: (ranks.folder / "attempts").exists())
    attempts = ranks.folder / "attempts"
    wait_until(lambda: attempts.read_text().count("\n") >= 5 and not descendants(ranks.process.pid))
    num_attempts = attempts.read_text().count("\n")
    ranks.process.send_signal(signal.SIGTERM)  # in a pause of 1.6 s or more
    code, _ = ranks.end()
    assert code == 75
    assert attempts.read_text().count("\n") == num_attempts


def test_a_command_that_cannot_be_started_is_a_mistake(tmp_path: Path) -> None:
    assert_one_error(run(*SUPERVISE, "--", tmp_path / "none"), f"{tmp_path}/none: cannot be started")
    assert_one_error(run(*SUPERVISE), "the command is missing; write it after --")
    assert_one_error(run(*SUPERVISE, "--restart", 3, "--", "true"), "--restart: unknown flag")
