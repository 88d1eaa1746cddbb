"""What srun sets becomes what torchrun would set, in tasks of a step alone."""

import os

import pytest

from pretraining.system.launchers import num_processes, process_rank
from pretraining.system.machines.slurm import adopt_slurm_task, first_host, is_slurm_task, task_counts

# As srun -N 2 --ntasks-per-node=3 sets them in its fifth task; those of the job are in a batch script too.
JOB = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "6", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
STEP = {
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2)",
    "SLURM_STEP_NODELIST": "gpu[07,12]",
    "SLURM_STEP_ID": "2",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_LAUNCH_NODE_IPADDR": "10.9.9.9",
}
SET = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name not in SET})


def adopted(**variables: str) -> dict[str, str]:
    os.environ.update(variables)
    adopt_slurm_task()
    return {name: os.environ[name] for name in SET if name in os.environ}


def test_a_task_of_srun_is_a_rank() -> None:
    found = adopted(**{**JOB, **STEP})
    port = str(15_000 + (47_110 + 2) % 15_000)
    assert found == dict(zip(SET, ("4", "1", "6", "3", "gpu07", port), strict=True))
    assert (process_rank(), num_processes()) == (4, 6)
    assert is_slurm_task()


def test_a_batch_script_and_an_interactive_shell_are_not_tasks() -> None:
    assert adopted(**JOB) == {}
    assert not is_slurm_task()
    assert adopted(**{**JOB, **STEP, "SLURM_STEP_NUM_TASKS": "1"}) == {}


@pytest.mark.parametrize("name", ["RANK", "OMPI_COMM_WORLD_RANK"])
def test_a_launcher_inside_of_a_task_counts(name: str) -> None:
    assert adopted(**{**JOB, **STEP, name: "0"}).keys() <= {"RANK"}
    assert process_rank() == 0


def test_an_address_of_the_users_stays() -> None:
    found = adopted(**{**JOB, **STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "4000")


def test_ranks_of_pmi_are_those_of_the_task() -> None:
    """`srun --mpi=pmi2` sets no local rank."""
    assert adopted(**{**JOB, **STEP, "PMI_RANK": "4", "PMI_SIZE": "6"})["LOCAL_RANK"] == "1"


def test_lists_of_slurm() -> None:
    assert [first_host(text) for text in ("n1", "n[3-5,9],m2", "a,b", "r[0-1]-n[02]")] == ["n1", "n3", "a", "r0-n02"]
    assert task_counts("8(x2),3,1(x3)") == [8, 8, 3, 1, 1, 1]
    found = adopted(**{**JOB, **STEP, "SLURM_STEP_TASKS_PER_NODE": "", "SLURM_NTASKS_PER_NODE": "3"})
    assert found["LOCAL_WORLD_SIZE"] == "3"
