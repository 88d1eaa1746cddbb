"""recipes/slurm on a real Slurm of two hosts: tasks that find each other, saves before the limit, requeues."""

import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR
from tests.multinode.hosts import NAMES, TwoHosts
from tests.multinode.preloaded_tasks import listen_on
from tests.multinode.slurm import Cluster
from tests.programs.launching import HAND_OVER, records, training_flags

pytestmark = pytest.mark.launch

SCRIPTS = PROJECT_DIR / "recipes/slurm"
ONE, SEVERAL = SCRIPTS / "one_machine.sbatch", SCRIPTS / "several_machines.sbatch"
# In place of pretrain.py: it notes where it runs, and ends each attempt with the next of the given codes, the second
# task later than the first, as a rank does whose neighbor has failed.
STAND_IN = """
import os, sys, time
attempt = int(os.environ.get("SLURM_RESTART_COUNT", 0))
with open(sys.argv[1], "a") as file:
    print(attempt, os.uname().nodename, os.environ["SLURM_PROCID"], file=file)
while sum(line.startswith(f"{attempt} ") for line in open(sys.argv[1])) < int(os.environ["SLURM_NTASKS"]):
    time.sleep(0.05)
code = int(sys.argv[2].split(",")[attempt])
if code and os.environ["SLURM_PROCID"] != "0":
    time.sleep(1)
sys.exit(code)
"""
SAVES_WHEN_IT_IS_ENDED = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""
NUM_STEPS = 30


@pytest.fixture
def cluster(hosts: TwoHosts, tmp_path: Path) -> Cluster:
    """Slurm, which ends with the hosts."""
    return Cluster(hosts, tmp_path / "slurm")


@pytest.mark.parametrize("script", [ONE, SEVERAL], ids=lambda path: path.stem)
def test_the_scripts_are_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "--requeue" in text
    assert "--signal=" in text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with the stand-in."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pretrain.py").write_text(STAND_IN)
    return folder


@pytest.mark.long  # after a stop, and not after success: test_several_machines_save_before_the_limit_and_resume
def test_a_job_comes_back_after_a_stop_or_a_crash_but_not_after_success(cluster: Cluster, folder: Path) -> None:
    options = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"]
    again = cluster.submit(options, SEVERAL, folder / "again", "75,1,0,0", cwd=folder)
    assert cluster.end_of(again) == ("COMPLETED", "0", 2), cluster.log(again)
    attempts = sorted((folder / "again").read_text().splitlines())
    assert attempts == [f"{attempt} {name} {rank}" for attempt in range(3) for rank, name in enumerate(NAMES)]


def test_a_job_does_not_come_back_after_a_mistake(cluster: Cluster, folder: Path) -> None:
    options = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1"]  # the first one of a node ends before the other
    mistake = cluster.submit(options, SEVERAL, folder / "mistake", "2,0", cwd=folder)
    assert cluster.end_of(mistake) == ("FAILED", "2", 0), cluster.log(mistake)


def test_a_canceled_job_does_not_come_back(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "pretrain.py").write_text(SAVES_WHEN_IT_IS_ENDED)
    number = cluster.submit(["--nodes=2", "--ntasks-per-node=1"], SEVERAL, tmp_path / "started", cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline, cluster.log(number)
        time.sleep(0.1)
    assert cluster.call("scancel", number).returncode == 0
    while cluster.call("squeue", "-h", "-o", "%T").stdout:  # while it is completing, too
        assert time.monotonic() < deadline, cluster.log(number)
        time.sleep(0.3)
    assert cluster.end_of(number)[::2] == ("CANCELLED", 0), cluster.log(number)


HANDED_OVER = f"""
import os, sys
os.chdir("{PROJECT_DIR}")
os.execv(sys.executable, [sys.executable, "{HAND_OVER}", "{PROJECT_DIR}/pretrain.py", *sys.argv[1:]])
"""


def stop_and_finish(
    cluster: Cluster, options: list[object], script: Path, store: Path, how: list[str], cwd: Path = PROJECT_DIR
) -> None:
    """Train, ask for a stop as Slurm does before the limit, and see the job come back and finish."""
    run_dir = cluster.folder / "run"
    flags = training_flags(store, run_dir, "--max_steps", NUM_STEPS, "--save_steps", NUM_STEPS, "--eval_strategy", "no")
    number = cluster.submit(options, script, *flags, cwd=cwd)
    deadline = time.monotonic() + 300
    while not (run_dir / "metrics.jsonl").exists() or not records(run_dir):
        assert time.monotonic() < deadline, cluster.log(number)[-3000:]
        time.sleep(0.1)
    assert cluster.call("scancel", *how, number).returncode == 0
    assert cluster.end_of(number) == ("COMPLETED", "0", 1), cluster.log(number)[-6000:]
    steps = [record["step"] for record in records(run_dir)]
    assert steps == list(range(1, NUM_STEPS + 1)), "each step once, whichever attempt took it"
    assert "resuming from " in cluster.log(number)
    assert (run_dir / "model/model.safetensors").exists()


# What srun starts has a fork run pretrain.py; the tasks of test_launchers.py are such forks too.
@pytest.mark.parametrize("start", ["fork", pytest.param("new process", marks=pytest.mark.long)])
@pytest.mark.guarantee("Under Slurm a run saves before the limit of its job, is requeued, and resumes.")
def test_several_machines_save_before_the_limit_and_resume(
    start: str, cluster: Cluster, hosts: TwoHosts, folder: Path, sample_store: Path
) -> None:
    options, cwd = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"], PROJECT_DIR
    if start == "fork":
        cwd = folder
        (cwd / "pretrain.py").write_text(HANDED_OVER)
        cluster.env |= listen_on(hosts, folder)
    stop_and_finish(cluster, options, SEVERAL, sample_store, ["--signal=USR1"], cwd)  # to the tasks: `--signal=USR1@N`


@pytest.mark.long  # test_several_machines_save_before_the_limit_and_resume
def test_one_machine_saves_before_the_limit_and_resumes(cluster: Cluster, sample_store: Path) -> None:
    # to the script alone, as `--signal=B:USR1@N`
    stop_and_finish(cluster, ["--cpus-per-task=1"], ONE, sample_store, ["--signal=USR1", "--batch"])
