"""A plan follows its flags: of other machines, and within a limit."""

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.planning.table import PlannedRun, plan_table
from pretraining.training.config.layout import planned_machine
from pretraining.training.dry_run.plan import make_plan
from tests.conftest import PROJECT_DIR


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_DIR)


def planned(*words: str) -> PlannedRun:
    arguments = parse_pretrain_arguments("", ["--dry_run", "--model", "tinyllama_1b", "--gpu_type", "h100", *words])
    return make_plan(arguments, planned_machine(arguments.plan), None)


def test_gpus_of_several_machines_with_what_is_sent_between_them() -> None:
    run = planned("--num_gpus", "4", "--num_nodes", "2", "--assumed_network_gbits", "100")
    assert (run.machine.num_processes, run.machine.num_local_processes, run.machine.name) == (8, 4, "8 x h100")
    text = " ".join(plan_table(run, [], problems=[]).split())
    assert "host memory of each of 2 machines" in text
    assert "sent per step GB by each GPU" in text
    assert "into and out of each machine" in text
    assert "at 100 Gbit/s (assumed)" in text
    alone = " ".join(plan_table(planned("--num_gpus", "1"), [], problems=[]).split())
    assert "sent per step" not in alone


def test_the_table_names_the_stage() -> None:
    for config, name in (("ds_config_zero1.json", "ZeRO-1"), ("ds_config_hpz.json", "ZeRO-3 with hpZ of 4")):
        run = planned("--num_gpus", "4", "--num_nodes", "2", "--deepspeed", config)
        text = plan_table(run, [], problems=[])
        assert name in text
        assert ("second copy (hpZ)" in text) == ("hpz" in config)
        assert all(len(line) <= 79 for line in text.splitlines()), text


def test_a_limit_is_less_than_the_gpu_has() -> None:
    run = planned("--num_gpus", "1", "--gpu_memory_limit", "20GB")
    assert run.machine.gpu_bytes == 20 * 10**9
    assert run.machine.name == "1 x h100, 20.0 GB of each"
    assert planned("--num_gpus", "1", "--gpu_memory_limit", "900GB").machine.gpu_bytes < 90e9
