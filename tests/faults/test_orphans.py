"""Whatever is killed, the launcher or one of the ranks, no process of the run is left, and no success is reported."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pretraining.system.processes import ProcessHandle
from tests.conftest import HANG_SECONDS, PROJECT_DIR
from tests.programs.launching import launcher

pytestmark = pytest.mark.launch

DEATHS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1, "SIGHUP": signal.SIGHUP}


@dataclass(frozen=True)
class Waiting:
    """A launcher with two ranks that wait."""

    command: subprocess.Popen
    ranks: list[dict[str, int]]
    folder: Path

    def end(self, whom: str, how: str) -> tuple[int, str]:
        """Signal one of its processes; the exit code and stderr of the command, when no process is left."""
        pids = {"rank": self.ranks[1]["pid"], "launcher": self.ranks[0]["launcher"], "command": self.command.pid}
        everything = [
            *(rank[name] for rank in self.ranks for name in ("pid", "parent")),
            pids["launcher"],
            pids["command"],
        ]
        known = [ProcessHandle.of(pid) for pid in everything]
        hangs_at = time.monotonic() + HANG_SECONDS
        if whom == "all":
            os.killpg(self.command.pid, DEATHS[how])
        else:
            os.kill(pids[whom], DEATHS[how])
        try:
            _, stderr = self.command.communicate(timeout=HANG_SECONDS)
            while any(process.is_alive() for process in known):
                assert time.monotonic() < hangs_at, (known, stderr)
                time.sleep(0.1)
        finally:
            for process in known:
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
        return self.command.returncode, stderr

    def asked(self) -> list[str]:
        """What the ranks were asked to stop by, as far as they were."""
        return [path.read_text() for path in sorted(self.folder.glob("asked-*"))]


def start(name: str, folder: Path, *, watches_others: bool = False, nohup: bool = False) -> Waiting:
    script = PROJECT_DIR / "tests/faults/drivers/waiting_ranks.py"
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    env |= {"NEIGHBOURS": "1"} if watches_others else {}
    words = [str(word) for word in [*["nohup"] * nohup, *launcher(name), script, folder]]
    command = subprocess.Popen(
        words, env=env, cwd=PROJECT_DIR, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    paths = [folder / "0.json", folder / "1.json"]
    while not all(path.exists() for path in paths):
        assert command.poll() is None, command.communicate()
        time.sleep(0.05)
    return Waiting(command, [json.loads(path.read_text()) for path in paths], folder)


# Below, a deepspeed command is killed, with which its launcher ends. The ranks of torchrun notice it in the same way.
@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.long) for name in ("deepspeed", "torchrun")), "mpirun"]
)
@pytest.mark.guarantee("No process outlives its launcher.")
def test_nothing_outlives_its_killed_launcher(
    name: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("killed", 1)
    waiting = start(name, tmp_path)
    code, stderr = waiting.end("launcher", "SIGKILL")
    assert code != 0
    num_errors = stderr.count("error: launcher died, stopping; rerun to resume")
    assert num_errors == (name != "mpirun"), "mpirun holds the other end of the pipe that its ranks write to"
    assert waiting.asked() == []


# The ranks notice either end in one way: by the launcher that is gone.
@pytest.mark.parametrize("how", [pytest.param("SIGTERM", marks=pytest.mark.long), "SIGKILL"])
def test_the_ranks_of_a_deepspeed_command_that_was_ended_stop_and_save(
    how: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Under nohup, where the end of the terminal changes nothing: they would name SIGHUP, which outranks the other."""
    record_property("killed", int(how == "SIGKILL"))
    waiting = start("deepspeed", tmp_path, nohup=True)
    os.killpg(waiting.command.pid, signal.SIGHUP)
    code, _ = waiting.end("command", how)
    assert code == -DEATHS[how]
    asked = waiting.asked()  # each looks once a second; the end of one may reach the other before that
    assert len(asked) == 2
    assert {"the launcher is gone"} <= set(asked) <= {"the launcher is gone", "SIGTERM"}


@pytest.mark.guarantee("No process outlives a dead rank, and no success is reported.")
def test_a_rank_that_waits_for_a_killed_one_ends_before_deepspeed_kills_it(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """deepspeed would, 30 s after it asked politely, and then it could not say what it says."""
    record_property("killed", 1)
    waiting = start("deepspeed", tmp_path, watches_others=True)
    code, stderr = waiting.end("rank", "SIGKILL")
    assert code != 0
    assert stderr.count("error: process 1 of this run died, stopping; rerun to resume") == 1


# Signals to all ranks: test_supervise.py, test_a_signal_reaches_every_rank_and_nothing_is_left_running; a deepspeed
# command that is gone: test_the_ranks_of_a_deepspeed_command_that_was_ended_stop_and_save.
@pytest.mark.long
@pytest.mark.parametrize("how", ["SIGUSR1", "SIGTERM"])
def test_a_signal_to_the_whole_job_lets_the_ranks_save(how: str, tmp_path: Path) -> None:
    """As of sbatch --signal=USR1@600, or of scancel; it kills the deepspeed command."""
    waiting = start("deepspeed", tmp_path)
    code, _ = waiting.end("all", how)
    assert code == -DEATHS[how]
    assert waiting.asked() == [how] * 2


# deepspeed under nohup: test_the_ranks_of_a_deepspeed_command_that_was_ended_stop_and_save
@pytest.mark.long
def test_torchrun_ends_with_its_terminal_under_nohup_too_and_its_ranks_save(tmp_path: Path) -> None:
    """It catches SIGHUP, whether that is ignored or not, and kills 30 s later: what a rank writes last is there."""
    waiting = start("torchrun", tmp_path, nohup=True)
    waiting.end("all", "SIGHUP")
    assert waiting.asked() == ["SIGHUP"] * 2
