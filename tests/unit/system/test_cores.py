"""How many cores are used follows from CPU set, quota and topology, whatever number the machine reports."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretraining.system.cores import compute_cores, core_quota, usable_cores
from tests.conftest import python, run_fine

OWN = sorted(os.sched_getaffinity(0))
COUNTS = "from pretraining.system.cores import *; print(usable_cores(), compute_cores(), core_quota())"
V1_GROUP = Path("/sys/fs/cgroup/cpu")


def described(root: Path, files: dict[str, str]) -> Path:
    """A machine as its /proc and /sys describe it."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def siblings(lists: dict[int, str]) -> dict[str, str]:
    return {f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in lists.items()}


QUOTAS = {
    "not told": ({}, None),
    "v2, no limit": ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n"}, None),
    "v2": ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}, 1.5),
    "v2, of a group around it": (
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/cpu.max": "50000 100000\n",
        },
        0.5,
    ),
    "v2, in a container": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
    "v1": (
        {
            "proc/self/cgroup": "9:memory:/\n4:cpu,cpuacct:/job:1/x\n0::/\n",
            "sys/fs/cgroup/cpu,cpuacct/job:1/x/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/job:1/x/cpu.cfs_period_us": "50000\n",
        },
        2.0,
    ),
    "v1, in a container that sees names from outside": (
        {
            "proc/self/cgroup": "4:cpu:/docker/1234\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        3.0,
    ),
    "v1, no limit": (
        {
            "proc/self/cgroup": "4:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
    "damaged": ({"proc/self/cgroup": "what\n", "sys/fs/cgroup/cpu.max": "some\n"}, None),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_the_quota_is_that_of_its_own_group_and_those_around_it(name: str, tmp_path: Path) -> None:
    files, expected = QUOTAS[name]
    root = described(tmp_path, files)
    assert core_quota(root) == expected
    rounded_up = len(OWN) if expected is None else max(1, min(len(OWN), -int(-expected // 1)))
    assert usable_cores(root) == compute_cores(root) == rounded_up


@pytest.mark.skipif(len(OWN) < 2, reason="this test needs two cores")
def test_two_threads_of_a_core_are_one_to_a_matrix_multiplication(tmp_path: Path) -> None:
    pair = ",".join(map(str, OWN[:2]))
    root = described(tmp_path, siblings({**{cpu: str(cpu) for cpu in OWN}, OWN[0]: pair, OWN[1]: pair}))
    assert usable_cores(root) == len(OWN)
    assert compute_cores(root) == len(OWN) - 1


@pytest.mark.skipif(len(OWN) < 2, reason="this test needs two cores")
def test_fast_cores_alone_compute(tmp_path: Path) -> None:
    root = described(tmp_path, {"sys/devices/cpu_core/cpus": f"{OWN[0]}\n", "sys/devices/cpu_atom/cpus": "1-9\n"})
    assert usable_cores(root) == len(OWN)
    assert compute_cores(root) == 1
    elsewhere = described(tmp_path / "2", {"sys/devices/cpu_core/cpus": f"{OWN[-1] + 1}-{OWN[-1] + 8}\n"})
    assert compute_cores(elsewhere) == len(OWN), "where it may use efficient cores only, they compute"


def test_a_cpu_set_is_kept_to() -> None:
    done = run_fine("taskset", "-c", OWN[-1], sys.executable, "-c", COUNTS)
    assert done.stdout.split()[:2] == ["1", "1"]
    help_text = run_fine("taskset", "-c", OWN[-1], *python("preprocess.py", "--help")).stdout
    assert "processes of two or more. [3]" in " ".join(help_text.split()), "one core, and two more"


def test_numpy_starts_no_thread_unless_the_user_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; from pretraining.system.cores import *; use_one_blas_thread(); import numpy; "
    code += "print(len(os.listdir('/proc/self/task')))"
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert run_fine(sys.executable, "-c", code).stdout.split() == ["1"]
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    assert run_fine(sys.executable, "-c", code).stdout.split() == [str(min(2, len(OWN)))]


@pytest.fixture
def half_a_core() -> Iterator[list[object]]:
    """What starts a program in a real control group of half a core."""
    folder = V1_GROUP / f"pretraining-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "cpu.cfs_quota_us").write_text("50000")
    except OSError:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip("may not make a control group of version 1 here")
    yield ["sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh"]
    folder.rmdir()


def test_a_real_quota_is_kept_to(half_a_core: list[object], sample_store: Path, tmp_path: Path) -> None:
    assert run_fine(*half_a_core, sys.executable, "-c", COUNTS).stdout.split() == ["1", "1", "0.5"]
    help_text = run_fine(*half_a_core, *python("preprocess.py", "--help")).stdout
    assert "processes of two or more. [3]" in " ".join(help_text.split())
