"""--restarts: a run that crashes comes up again and is the run that did not; what is wanted or hopeless does not."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import pytest

from pretraining.cli.program import STOPPED_EXIT_CODE
from pretraining.system.restarts import boot_seconds, socket_path
from pretraining.system.supervisor import End, Ended, Leave, Start, receive_message, send_message
from tests.adversarial.drivers.forging import Calls
from tests.conftest import HANG_SECONDS, PROJECT_DIR, assert_one_error, python, run, run_fine
from tests.programs.launching import events, figures, records, train, try_to_train

pytestmark = pytest.mark.launch

SUPERVISED = PROJECT_DIR / "tests/faults/drivers/supervised.py"
CRASHING = "tests/faults/drivers/crashing_run.py"
FLAGS = ["--save_steps", 2, "--eval_strategy", "no"]


@pytest.fixture(scope="module")
def undisturbed(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    train("2 ranks", sample_store, run_dir, *FLAGS, "--save_total_limit", 3)
    return run_dir


def test_a_run_whose_rank_is_killed_ends_as_if_it_had_not_been(
    undisturbed: Path, sample_store: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    crashes = {"CRASHES": json.dumps([[1, 5, "SIGKILL"]])}
    flags = [*FLAGS, "--restarts", 2]
    done = train("deepspeed", sample_store, tmp_path / "run", *flags, script=CRASHING, env=crashes)
    assert "warning: rank 1 was killed by SIGKILL at 20" in done.stderr
    assert "; restart 1 of 2 in 1 s" in done.stderr
    assert f"resuming from {tmp_path}/run/checkpoint-4" in done.stderr
    (event,) = events(tmp_path / "run", "restart")
    assert (event["step"], event["event"], event["restart"]) == (4, "restart", 1)
    assert event["reason"].startswith("rank 1 was killed by SIGKILL at 20")
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert figures(tmp_path / "run") == figures(undisturbed)
    record_property("killed", 1)
    record_property("lost_steps", 1)


def test_the_checkpoint_that_was_named_counts_until_there_is_a_newer_one(
    undisturbed: Path, sample_store: Path, tmp_path: Path
) -> None:
    flags = [*FLAGS, "--resume", undisturbed / "checkpoint-2"]
    crashes, started_at = {"CRASHES": json.dumps([[0, 3, 7], [0, 5, 7]])}, boot_seconds()

    def attempt(number: int) -> int:
        restart = {"number": number, "limit": 9, "reason": str(number), "started_at": started_at}
        env = crashes | ({"PRETRAINING_RESTART": json.dumps(restart)} if number else {})
        return try_to_train("2 ranks", sample_store, tmp_path / "run", *flags, script=CRASHING, env=env).returncode

    assert [attempt(number) for number in (0, 1, 2)] == [7, 7, 0]
    assert [event["step"] for event in events(tmp_path / "run", "restart")] == [2, 4]
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert figures(tmp_path / "run") == figures(undisturbed)


def test_a_stop_that_was_asked_for_before_a_crash_is_one_after_it(
    undisturbed: Path, sample_store: Path, tmp_path: Path
) -> None:
    """STOP is older than the process that was brought up again, but not than the run."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    shutil.rmtree(run_dir / "checkpoint-6")
    restart = {"number": 1, "limit": 9, "reason": "a crash", "started_at": boot_seconds() - 1}
    (run_dir / "STOP").touch()
    env = {"PRETRAINING_RESTART": json.dumps(restart)}
    done = try_to_train("2 ranks", sample_store, run_dir, *FLAGS, "--save_total_limit", 3, env=env)
    assert done.returncode == STOPPED_EXIT_CODE, done.output[-4000:]
    assert "stopped at step 5 (the file STOP)" in done.stderr


class Ranks:
    """Processes of tests/faults/drivers/supervised.py, started as a launcher starts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen] = []

    def start(self, num_ranks: int, limit: int, does: dict[str, int | str]) -> None:
        for rank in range(num_ranks):
            told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
            env = {**os.environ, "PYTHONPATH": str(PROJECT_DIR), "DOES": json.dumps(does)}
            env |= {name: str(value) for name, value in told.items()} if num_ranks > 1 else {}
            words = [sys.executable, SUPERVISED, str(limit), self.folder]
            process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
            self.processes.append(process)

    def codes(self) -> list[int]:
        return [process.wait(HANG_SECONDS) for process in self.processes]

    def worker(self, attempt: int, rank: int) -> dict[str, Any]:
        path = self.folder / f"{attempt}-{rank}.json"
        wait_until(path.is_file)
        return json.loads(path.read_text())

    def attempts(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.json")}

    def alive(self) -> set[int]:
        """Workers and their children that still run."""
        reports = [json.loads(path.read_text()) for path in self.folder.glob("*.json")]
        return {report[name] for report in reports for name in ("pid", "child") if is_alive(report[name])}


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(is_so: Any) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path)
    yield ranks
    for process in ranks.processes:
        process.kill()
    wait_until(lambda: not ranks.alive())


def test_one_crash_ends_all_workers_and_starts_all_again(ranks: Ranks) -> None:
    """Rank 0 is done when rank 2 crashes; rank 1 waits, with a child, for what will not come."""
    ranks.start(3, 2, {"0-0": 0, "0-2": "SIGSEGV", "1-0": 9, **{f"2-{rank}": 0 for rank in range(3)}})
    assert ranks.codes() == [0, 0, 0]
    assert {name.split("-")[0] for name in ranks.attempts()} == {"0", "1", "2"}
    wait_until(lambda: not ranks.alive())
    errors = [process.stderr.read() for process in ranks.processes if process.stderr is not None]
    assert "rank 2 was killed by SIGSEGV at" in errors[0]
    assert "rank 0 ended with exit code 9 at" in errors[0]
    assert errors[1:] == ["", ""]
    ports = {ranks.worker(attempt, 1)["MASTER_PORT"] for attempt in (0, 2)}
    assert len(ports) == 2
    assert {ranks.worker(2, rank)["MASTER_PORT"] for rank in range(3)} < ports
    assert [ranks.worker(0, 1)[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["1", "1", "3"]
    assert ranks.worker(0, 0)["PRETRAINING_LAUNCHER"] == ranks.worker(2, 2)["PRETRAINING_LAUNCHER"]


@pytest.mark.parametrize(
    ("code", "num_attempts"), [(2, 1), (75, 1), (130, 1), (7, 2), ("SIGKILL", 2), ("SIGTERM", 1), ("SIGHUP", 1)]
)
def test_the_last_code_is_that_of_the_run(
    ranks: Ranks, code: int | str, num_attempts: int, record_property: Callable[[str, object], None]
) -> None:
    record_property("killed", num_attempts * (code == "SIGKILL"))
    record_property("tried", num_attempts)
    ranks.start(1, 1, {"0-0": code, "1-0": code})
    assert ranks.codes() == [code if isinstance(code, int) else 128 + signal.Signals[code]]
    assert len(ranks.attempts()) == num_attempts
    wait_until(lambda: not ranks.alive())


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGINT", 130), ("SIGUSR1", 7), ("SIGHUP", 75)])
def test_a_signal_reaches_the_worker_once_and_ends_the_run(ranks: Ranks, name: str, code: int) -> None:
    """Sent to the process group, as a terminal does: the worker's supervisor passes it on."""
    ranks.start(2, 5, {"asked": code})
    ranks.worker(0, 0), ranks.worker(0, 1)
    for process in ranks.processes:
        os.killpg(process.pid, signal.Signals[name])
    assert ranks.codes() == [code, code]
    assert ranks.attempts() == {"0-0", "0-1"}
    assert [(ranks.folder / f"0-{rank}.signals").read_text() for rank in (0, 1)] == [name, name]


def test_a_run_can_be_stopped_between_two_attempts(ranks: Ranks) -> None:
    ranks.start(2, 9, {f"{attempt}-0": 7 for attempt in range(9)})
    ranks.worker(1, 0)
    wait_until(lambda: not ranks.alive())
    ranks.processes[1].send_signal(signal.SIGTERM)
    assert ranks.codes() == [75, 75]
    assert "2-0" not in ranks.attempts()


@pytest.mark.parametrize("rank", [0, 1])
def test_no_worker_outlives_its_supervisor(
    ranks: Ranks, rank: int, record_property: Callable[[str, object], None]
) -> None:
    record_property("killed", 1)
    ranks.start(2, 5, {})
    workers = [ranks.worker(0, 0), ranks.worker(0, 1)]
    ranks.processes[rank].kill()
    wait_until(lambda: not any(is_alive(worker["pid"]) for worker in workers))
    assert ranks.codes()[1 - rank] == 1
    for worker in workers:  # a child of the killed supervisor's worker is nobody's: it would see to itself
        if is_alive(worker["child"]):
            os.kill(worker["child"], signal.SIGKILL)
    assert ranks.attempts() == {"0-0", "0-1"}


def test_workers_are_asked_to_stop_when_the_launcher_is_gone(
    ranks: Ranks, record_property: Callable[[str, object], None]
) -> None:
    record_property("killed", 1)
    worker = shlex.join([sys.executable, str(SUPERVISED), "5", str(ranks.folder)])
    words = f"for RANK in 0 1; do RANK=$RANK LOCAL_RANK=$RANK {worker} & done; wait"
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "DOES": "{}", "PYTHONPATH": str(PROJECT_DIR)}
    launcher = subprocess.Popen(["bash", "-c", words], env={**os.environ, **told})
    supervisors = [ranks.worker(0, rank)["supervisor"] for rank in (0, 1)]
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in supervisors))
    assert [(ranks.folder / f"0-{rank}.signals").read_text() for rank in (0, 1)] == ["SIGTERM", "SIGTERM"]


def test_more_than_one_machine_is_refused() -> None:
    told = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    done = run(*python("pretrain.py", "--restarts", 3), env=told)
    assert_one_error(done, "--restarts 3: 1 of the 2 processes are on this machine", "leave the flag out")


def test_a_supervisor_imports_little() -> None:
    """It stays in memory beside each worker."""
    script = (
        "import sys, pretrain; pretrain.parse_pretrain_arguments('', []); print({'torch', 'pyarrow'} & {*sys.modules})"
    )
    assert run_fine(sys.executable, "-c", script).stdout == "set()\n"


def test_what_supervisors_send_each_other_is_not_unpickled(tmp_path: Path) -> None:
    ours, theirs = Pipe()
    for message in (Start({"A": "é"}), End(), Leave(3), Ended(1, -9, was_asked=False)):
        send_message(theirs, message)
        assert receive_message(ours) == message
    theirs.send(Calls(os.system, f"touch {tmp_path / 'canary'}"))
    with pytest.raises(ValueError, match=r"decode|Expecting"):
        receive_message(ours)
    assert not (tmp_path / "canary").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_user_cannot_reach_the_coordinator() -> None:
    path = socket_path()
    script = "import os; from multiprocessing.connection import Client; os.setuid({user}); Client({path!r})"
    try:
        with Listener(str(path)):
            assert "PermissionError" in run(sys.executable, "-c", script.format(user=65534, path=str(path))).stderr
            run_fine(sys.executable, "-c", script.format(user=os.getuid(), path=str(path)))
    finally:
        shutil.rmtree(path.parent)
