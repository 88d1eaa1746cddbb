"""Whatever ends on one of several machines, all processes on all of them end within a minute, and not as a success."""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jsonlines
import pytest

from pretraining.errors import STOPPED_EXIT_CODE
from pretraining.system.launchers import DEEPSPEED, free_port
from tests.multinode.hosts import NAMES, NODE_A, NODE_B, HostProcess, TwoHosts
from tests.multinode.preloaded_tasks import listen_on
from tests.programs.launching import HAND_OVER, events, records, training_flags

pytestmark = pytest.mark.launch

END_SECONDS = 60.0
FLAGS = ["--max_steps", 100_000, "--save_steps", 100_000, "--eval_strategy", "no", "--logging_steps", 1]


class Run:
    """A run of one process on each of two hosts, started by `deepspeed --hostfile` on the first one."""

    def __init__(
        self, hosts: TwoHosts, store: Path, run_dir: Path, *before: object, listening: dict[str, str] | None = None
    ) -> None:
        self.hosts, self.run_dir = hosts, run_dir
        self._others = {process.pid for name in NAMES for process in hosts.processes(name)}
        words = [*before, *DEEPSPEED, f"--hostfile={hosts.hostfile()}", f"--master_port={free_port()}"]
        words += ["pretrain.py"] if listening is None else [HAND_OVER, "pretrain.py"]
        self.runner: HostProcess = hosts.run(NODE_A, [*words, *training_flags(store, run_dir, *FLAGS)], env=listening)

    def wait_for_step(self, step: int = 2) -> None:
        """Wait until the log has a step."""
        self.runner.wait_until(lambda: self._has_step(step))

    def _has_step(self, step: int) -> bool:
        path = self.run_dir / "metrics.jsonl"
        return path.exists() and any(record["step"] >= step for record in records(self.run_dir))

    def rank(self, number: int) -> int:
        """The process of a rank."""
        (pid,) = [
            each.pid
            for each in self.hosts.processes(NAMES[number])
            if "--local_rank=0" in Path(f"/proc/{each.pid}/cmdline").read_text().split("\0")
        ]
        return pid

    def seconds_until_gone(self) -> float:
        """Seconds until no process is left on any host."""
        started_at = time.monotonic()
        while any(process.pid not in self._others for name in NAMES for process in self.hosts.processes(name)):
            left = {name: self.hosts.commands(name) for name in NAMES}
            assert time.monotonic() < started_at + END_SECONDS, (left, self.runner.output()[-6000:])
            time.sleep(0.1)
        return time.monotonic() - started_at


@pytest.fixture
def run(hosts: TwoHosts, sample_store: Path, tmp_path: Path) -> Run:
    run = Run(hosts, sample_store, tmp_path / "run")
    run.wait_for_step()
    return run


def assert_gone(run: Run, record_property: Callable[[str, object], None], *lines: str) -> str:
    """All processes end in time, with an exit code that is not 0; the log has these lines, once each."""
    seconds = run.seconds_until_gone()
    done = run.runner.done()
    record_property("seconds", round(seconds, 1))
    record_property("exit_code", done.returncode)
    assert done.returncode != 0
    for line in lines:
        assert done.output.count(line) == 1, done.output
    return done.output


@pytest.mark.guarantee("When a machine of several dies, all processes on all machines end within a minute.")
def test_a_host_dies(
    hosts: TwoHosts, sample_store: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    run = Run(hosts, sample_store, tmp_path / "run", listening=listen_on(hosts, tmp_path))
    run.wait_for_step()
    run.hosts.kill(NODE_B)
    output = assert_gone(
        run, record_property, "node-b of this run is gone (connection closed), stopping; rerun to resume"
    )
    assert "Traceback" not in output


# Of all that are long, test_a_host_dies shows that a machine ends when it loses the other, test_machine_links.py by
# what, and tests/faults/test_orphans.py and test_supervise.py what deepspeed leaves and passes on.
@pytest.mark.long
def test_the_first_host_dies(run: Run, record_property: Callable[[str, object], None]) -> None:
    run.hosts.kill(NODE_A)
    assert_gone(run, record_property)


@pytest.mark.long  # test_launchers.py, test_a_link_is_cut
def test_a_link_is_cut(run: Run, record_property: Callable[[str, object], None]) -> None:
    run.hosts.cut_link()
    assert_gone(run, record_property, "node-b of this run is gone (no answer for 30 s), stopping; rerun to resume")


@pytest.mark.long
def test_the_command_is_killed(run: Run, record_property: Callable[[str, object], None]) -> None:
    run.runner.kill()
    assert_gone(run, record_property)
    (event,) = events(run.run_dir, "stop")
    assert event["reason"] == "the launcher is gone"


@pytest.mark.long
@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_is_killed(run: Run, number: int, record_property: Callable[[str, object], None]) -> None:
    os.kill(run.rank(number), signal.SIGKILL)
    assert_gone(
        run, record_property, f"{NAMES[number]} of this run is gone (connection closed), stopping; rerun to resume"
    )


@pytest.mark.long  # test_slurm.py, test_several_machines_save_before_the_limit_and_resume
def test_the_command_is_asked_to_stop(run: Run, record_property: Callable[[str, object], None]) -> None:
    run.runner.terminate()
    assert_gone(run, record_property)
    assert events(run.run_dir, "stop")


def trains_again(run_dir: Path) -> bool:
    """Whether there is a step after a restart."""
    with jsonlines.open(run_dir / "metrics.jsonl") as lines:
        since = itertools.dropwhile(lambda record: record.get("event") != "restart", lines)
        return any("loss" in record for record in since)


@pytest.mark.long
def test_a_supervised_run_starts_again_and_stops_on_request(
    hosts: TwoHosts, sample_store: Path, tmp_path: Path
) -> None:
    """The command ends when a host dies; later a signal to the supervisor reaches the ranks, which save."""
    supervise = [sys.executable, "-m", "tools.supervise", "--restarts", 1, "--pause_seconds", 1, "--"]
    run = Run(hosts, sample_store, tmp_path / "run", *supervise)
    run.wait_for_step()
    hosts.kill(NODE_B)
    hosts.start(NODE_B)
    run.runner.wait_until(lambda: trains_again(run.run_dir))
    run.runner.terminate()
    done = run.runner.done()
    assert done.returncode == STOPPED_EXIT_CODE, done.output[-6000:]
    assert "; restart 1 of 1 in 1 s" in done.output
    (stop,) = events(run.run_dir, "stop")
    assert stop["reason"] == "SIGTERM"
    assert (run.run_dir / f"checkpoint-{stop['step']}").is_dir()
    assert run.seconds_until_gone() < END_SECONDS
