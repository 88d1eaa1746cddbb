"""What launchers set in the environment, as a program reads it."""

import pytest

from pretraining.errors import UserError
from pretraining.system.launchers import (
    accelerate_problem,
    check_launch_variables,
    free_port,
    has_launcher,
    num_processes,
)


@pytest.mark.parametrize(
    ("variable", "flag"),
    [
        ("ACCELERATE_USE_CPU", "--cpu"),
        ("ACCELERATE_USE_FSDP", "--use_fsdp"),
        ("ACCELERATE_USE_MEGATRON_LM", "--use_megatron_lm"),
    ],
)
def test_flags_of_accelerate_that_train_without_deepspeed(
    variable: str, flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert accelerate_problem() is None
    monkeypatch.setenv(variable, "False")  # as a plain `accelerate launch` does
    assert accelerate_problem() is None
    monkeypatch.setenv(variable, "True")
    problem = accelerate_problem()
    assert problem is not None
    assert problem.startswith(f"accelerate launch {flag}: ")
    for launcher in ("accelerate launch --use_deepspeed --zero_stage 3", "deepspeed", "torchrun", "mpirun", "python3"):
        assert launcher in problem


def test_numbers_of_launchers_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match="rank 2 of 2 processes: ranks count from 0"):
        check_launch_variables()
    monkeypatch.setenv("RANK", "1")
    check_launch_variables()
    assert num_processes() == 2
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE=two: is not a whole number of 1 or more"):
        check_launch_variables()


def test_one_task_of_slurm_with_pmix_trains_alone_and_several_need_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PMIX_RANK": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}.items():
        monkeypatch.setenv(name, value)
    check_launch_variables()
    assert not has_launcher()
    for rank, name in (("0", "SLURM_STEP_NUM_TASKS"), ("1", "SLURM_NTASKS")):
        monkeypatch.setenv("PMIX_RANK", rank)
        monkeypatch.delenv(name)
        with pytest.raises(UserError, match=f"PMIX_RANK={rank}: one of several processes, whose number is not known"):
            check_launch_variables()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch_variables()


def test_a_free_port_is_one_of_users() -> None:
    assert 1024 <= free_port() < 65536
