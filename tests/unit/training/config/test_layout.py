"""The machine that flags describe, and the memory layout that follows from them."""

import pytest

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.cli.arguments.run import PlanArguments
from pretraining.errors import UserError
from pretraining.planning.layout import MachineSpec
from pretraining.system.gpus import find_gpu_type
from pretraining.training.config import layout
from pretraining.training.config.layout import (
    ResolvedLayout,
    planned_machine,
    resolve_layout,
    resolve_setup,
    smallest_machine,
    this_machine,
)
from pretraining.training.model.build import load_model_config
from tests.conftest import PROJECT_DIR


def test_flags_describe_another_machine() -> None:
    flags = PlanArguments(dry_run=True, gpu_type="h200", num_gpus=16, host_memory="1TB")
    machine, h200 = planned_machine(flags), find_gpu_type("h200")
    assert (machine.name, machine.num_processes, machine.num_local_processes) == ("16 x h200", 16, 8)
    assert (machine.gpu_bytes, machine.gpu_type, machine.host_bytes) == (h200.memory_bytes, h200, 10**12)
    assert planned_machine(PlanArguments(dry_run=True, gpu_type="h200")).host_bytes is None, "nothing describes it"


def test_without_flags_it_is_this_machine() -> None:
    here, planned = this_machine(), planned_machine(PlanArguments(dry_run=True))
    assert (planned.name, planned.gpu_bytes, planned.gpu_type) == (here.name, here.gpu_bytes, here.gpu_type)
    assert planned_machine(PlanArguments(dry_run=True, host_memory="1TB")).host_bytes == 10**12
    if not here.has_gpu:
        with pytest.raises(UserError, match=r"--num_gpus 2: this machine has no GPU; add --gpu_type, e\.g\. h200"):
            planned_machine(PlanArguments(dry_run=True, num_gpus=2))


def test_machines_may_differ_in_their_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_machines(*numbers: int) -> MachineSpec:
        found = [{"name": "host", "gpu": None, "host": 1, "processes": number} for number in numbers]
        monkeypatch.setattr(layout, "gather", lambda *_, **__: found)
        return smallest_machine(seconds=1)

    assert (of_machines(8, 4, 4).num_local_processes, of_machines(8, 4, 4).is_uniform) == (8, False)
    assert of_machines(8, 8).is_uniform


def resolved(*flags: str, num_gpus: int = 8, was_compiled: bool | None = None) -> ResolvedLayout:
    words = ["--dry_run", "--gpu_type", "h200", "--num_gpus", str(num_gpus), "--model", "llama2_7b"]
    arguments = parse_pretrain_arguments("", [*words, "--deepspeed", str(PROJECT_DIR / "ds_config.json"), *flags])
    config, machine = load_model_config(arguments.model, None), planned_machine(arguments.plan)
    setup = resolve_setup(arguments, config, machine, block_length=4096)
    return resolve_layout(arguments, setup, num_steps=100, precision="bf16", was_compiled=was_compiled)


def test_the_layout_follows_from_the_flags() -> None:
    plain = resolved().layout
    assert (plain.num_processes, plain.num_tokens, plain.weight_bytes) == (8, 4096, 2)
    assert (plain.checkpoint_every, plain.loss_tiles, plain.compiles_layers, plain.offload_optimizer) == (
        None,
        None,
        False,
        False,
    )
    tiled = resolved("--loss_tiles", "4", "--activation_checkpointing", "--per_device_train_batch_size", "2").layout
    assert (tiled.checkpoint_every, tiled.loss_tiles, tiled.num_tokens) == (1, 4, 8192)
    assert resolved("--deepspeed", str(PROJECT_DIR / "ds_config_offload_optimizer.json")).layout.offload_optimizer
    assert resolved("--gpu_memory_limit", "20GB").layout.device_bytes == find_gpu_type("h200").memory_bytes


def test_earlier_names_of_checkpointing_are_planned_as_they_are_trained() -> None:
    earlier = ("--gradient_checkpointing_kwargs", '{"every_n_layers": 4}')
    assert resolved("--gradient_checkpointing", "true", *earlier).layout.checkpoint_every == 4
    assert resolved("--activation_checkpointing", "true", *earlier).layout.checkpoint_every == 4
    both = ("--activation_checkpointing", "false", "--gradient_checkpointing", "true")
    assert resolved(*both, *earlier).layout.checkpoint_every is None


def test_gradient_type_and_compilation_are_in_the_layout() -> None:
    tight = resolved("--activation_checkpointing", num_gpus=1)
    assert tight.gradient_type.name == tight.layout.grad_accum_dtype
    half = resolved("--grad_accum_dtype", "bf16")
    assert half.layout.grad_accum_dtype == half.gradient_type.name == "bf16"
    assert resolved().arguments.model.compile_layers is False, "not unasked on GPUs"
    with pytest.raises(UserError, match="is not a multiple of"):
        resolved("--global_batch_tokens", "4097")


def test_adamw_8bit_cannot_count_a_large_partition() -> None:
    flags = ["--optim", "adamw_8bit", "--deepspeed", str(PROJECT_DIR / "ds_config_zero2.json")]
    with pytest.raises(UserError, match="here each process would update 3,369,074,688; use ds_config"):
        resolved(*flags, num_gpus=2)
    assert resolved(*flags, num_gpus=4).layout.stage == 2, "1.7e9 each"
    assert resolved("--optim", "adamw_8bit", num_gpus=2).layout.stage == 3
