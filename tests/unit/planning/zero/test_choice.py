"""What --deepspeed auto chooses for well-known machines, and the rules that lead there."""

from dataclasses import replace
from functools import cache

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.errors import UserError
from pretraining.planning.fit import fits
from pretraining.planning.zero.choice import Choice, possible_micro_batches, rank, runner_up
from pretraining.training.config.layout import planned_machine
from pretraining.training.dry_run.deepspeed_choice import choose
from tests.conftest import PROJECT_DIR


@pytest.fixture(autouse=True)
def in_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_DIR)


@cache
def ranked(model: str, machine: str, *flags: str) -> list[Choice]:
    """The choices for a machine such as "8 h100" or "4x8 h100", with 1 TB of host memory."""
    number, kind = machine.split()
    nodes, _, gpus = number.rpartition("x")
    words = ["--dry_run", "--model", model, "--deepspeed", "auto", "--host_memory", "1TB"]
    words += ["--num_gpus", gpus, "--gpu_type", kind, *(["--num_nodes", nodes] if nodes else []), *flags]
    arguments = parse_pretrain_arguments("", words)
    return choose(arguments, planned_machine(arguments.plan), None)


# Some are long: each config and way of checkpointing has a machine in `make test`.
@pytest.mark.parametrize(
    ("model", "machine", "config", "micro_batch", "is_checkpointed"),
    [
        pytest.param("llama_345m", "1 rtx_4090", "ds_config.json", 4, False, marks=pytest.mark.long),
        ("llama_345m", "8 h200", "ds_config_zero1.json", 16, False),
        ("tinyllama_1b", "1 rtx_4090", "ds_config.json", 2, True),
        pytest.param("tinyllama_1b", "4 rtx_4090", "ds_config_zero1.json", 2, False, marks=pytest.mark.long),
        ("llama2_7b", "1 rtx_4090", "ds_config_offload_optimizer.json", 2, True),
        pytest.param("llama2_7b", "8 a100_40gb", "ds_config.json", 4, True, marks=pytest.mark.long),
        pytest.param("llama2_7b", "8 a100_80gb", "ds_config.json", 2, False, marks=pytest.mark.long),
        ("llama2_7b", "1 h200", "ds_config.json", 4, True),
        ("llama2_7b", "8 h100", "ds_config.json", 2, False),
        pytest.param("llama2_7b", "8 h200", "ds_config_zero1.json", 2, False, marks=pytest.mark.long),
        ("llama2_7b", "4x8 h100", "ds_config_hpz.json", 2, False),
        ("llama2_13b", "1 rtx_4090", "ds_config_offload.json", 2, True),
        pytest.param("llama2_13b", "8 h200", "ds_config.json", 2, False, marks=pytest.mark.long),
        ("llama2_70b", "4x8 h100", "ds_config.json", 1, True),
    ],
)
def test_well_known_machines(model: str, machine: str, config: str, micro_batch: int, is_checkpointed: bool) -> None:
    best = ranked(model, machine)[0]
    assert (best.config, best.layout.micro_batch_blocks, best.is_checkpointed) == (config, micro_batch, is_checkpointed)
    assert fits(best.layout, best.machine)


def test_every_choice_fits_keeps_the_batch_and_none_is_clearly_faster() -> None:
    choices = ranked("llama2_7b", "8 h100")
    assert len({choice.config for choice in choices}) > 4
    assert all(fits(choice.layout, choice.machine) for choice in choices)
    assert {choice.batch.blocks for choice in choices} == {1024}
    exact = [choice for choice in choices if not choice.has_rounded_sums]
    assert exact == choices[: len(exact)], "those that sum gradients in fp32 come first"
    assert max(choice.tokens_per_second or 0 for choice in exact) <= 1.02 * (choices[0].tokens_per_second or 0)


def test_the_runner_up_differs_in_more_than_the_micro_batch() -> None:
    choices = ranked("tinyllama_1b", "8 h100")
    other = runner_up(choices)
    assert other is not None
    assert (other.config, other.is_checkpointed) != (choices[0].config, choices[0].is_checkpointed)
    assert "tokens/s/GPU by arithmetic" in other.describe()
    assert "sent per GPU and step" in other.describe()
    assert runner_up(choices[:1]) is None


def test_a_cap_on_the_memory_changes_the_choice() -> None:
    free, capped = ranked("tinyllama_1b", "1 h100"), ranked("tinyllama_1b", "1 h100", "--gpu_memory_limit", "20GB")
    assert free[0].needed.gpu_bytes > 20e9 * 0.96 > capped[0].needed.gpu_bytes
    assert capped[0].is_checkpointed
    with pytest.raises(UserError, match="--gpu_memory_limit 2GB: is not a size above 3GB"):
        parse_pretrain_arguments("", ["--gpu_memory_limit", "2GB"])


def test_what_is_set_stays() -> None:
    given = ["--per_device_train_batch_size", "1", "--activation_checkpointing", "true"]
    choices = ranked("tinyllama_1b", "8 h100", *given)
    assert {(choice.layout.micro_batch_blocks, choice.is_checkpointed) for choice in choices} == {(1, True)}


def test_muon_and_one_gpu_leave_configs_out() -> None:
    assert {choice.layout.stage for choice in ranked("tinyllama_1b", "8 h100", "--optim", "muon")} == {3}
    assert {choice.layout.stage for choice in ranked("tinyllama_1b", "1 h100")} == {3}


def test_adamw_8bit_leaves_out_what_it_cannot_count() -> None:
    assert {choice.layout.stage for choice in ranked("llama2_7b", "2 h200", "--optim", "adamw_8bit")} == {3}


def test_where_nothing_fits_the_smallest_is_left() -> None:
    (only,) = ranked("llama2_70b", "1 rtx_4090")
    assert only.config == "ds_config_offload.json"
    assert only.is_checkpointed
    assert not fits(only.layout, only.machine)


def test_an_unlisted_gpu_is_ranked_by_what_costs_time() -> None:
    choices = [replace(one, machine=replace(one.machine, gpu_type=None)) for one in ranked("llama2_7b", "8 h100")]
    again = rank(choices)
    assert not again[0].layout.offload_optimizer
    assert not again[0].is_checkpointed
    assert "by arithmetic" not in again[0].describe()


def test_micro_batches_divide_the_batch_up_to_enough_tokens() -> None:
    batch = ranked("tinyllama_1b", "8 h100")[0].batch
    assert possible_micro_batches(batch) == [16, 8, 4, 2, 1]
    assert possible_micro_batches(replace(batch, block_length=2**16)) == [1]
