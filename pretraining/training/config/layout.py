"""The machine of a run, and the memory layout that follows from its flags on that machine."""

import socket
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LlamaConfig

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.cli.arguments.run import PlanArguments
from pretraining.cli.deepspeed_config import agree_with_flags, load_ds_config, offloads
from pretraining.errors import UserError
from pretraining.planning.fit import GradientType, choose_gradient_type, resolved_settings
from pretraining.planning.flops import flops_per_token
from pretraining.planning.global_batch import GlobalBatch, resolve_global_batch
from pretraining.planning.layout import (
    MAX_GPUS_PER_MACHINE,
    MachineSpec,
    TrainingLayout,
    ZeroSettings,
    resolve_auto,
    resolve_hpz,
)
from pretraining.planning.model_states import sub_groups
from pretraining.system.formatting import format_bytes
from pretraining.system.gpus import find_gpu_type, full_gpu_name, gpu_type_of
from pretraining.system.host import available_host_bytes
from pretraining.system.launchers import num_local_processes, num_processes
from pretraining.system.machines.meeting import gather, leave
from pretraining.training.config.trainer_arguments import Precision, with_new_names
from pretraining.training.distributed.process_group import has_gpu, smallest_gpu_bytes
from pretraining.training.model.compile import Compilation, choose_compilation
from pretraining.training.model.document_attention import choose_attention

MAX_8BIT_SIZE = 2**31 - 1


def this_machine() -> MachineSpec:
    """Look up the GPUs of this run's processes, and the memory that is available now."""
    driver_name = torch.cuda.get_device_name() if has_gpu() else None
    return MachineSpec(
        name="this machine" if driver_name is None else f"{num_processes()} x {driver_name}",
        num_processes=num_processes(),
        num_local_processes=num_local_processes(),
        gpu_bytes=smallest_gpu_bytes(),
        gpu_type=None if driver_name is None else gpu_type_of(driver_name),
        host_bytes=available_host_bytes(),
    )


def smallest_machine(*, seconds: float, topic: str = "memory") -> MachineSpec:
    """This machine, with the least memory of any machine of the run and the most processes: what fits there fits.

    Each call of a run needs another topic.

    Raises:
        UserError: when only some machines have GPUs, or not all of them answer in time.
    """
    here = this_machine()
    sizes = {"gpu": here.gpu_bytes, "host": here.host_bytes, "processes": here.num_local_processes}
    found = gather(topic, {"name": socket.gethostname(), **sizes}, seconds=seconds)
    without = [each["name"] for each in found if each["gpu"] is None]
    if 0 < len(without) < len(found):
        leave([f"{without[0]}: torch finds no GPU there, as on other machines; python3 -m tools.doctor has the reason"])
    return replace(
        here,
        gpu_bytes=None if without else min(each["gpu"] for each in found),
        host_bytes=min(each["host"] for each in found),
        num_local_processes=max(each["processes"] for each in found),
        is_uniform=len({each["processes"] for each in found}) == 1,
    )


def planned_machine(flags: PlanArguments) -> MachineSpec:
    """The machine that --num_gpus, --num_nodes, --gpu_type and --host_memory describe; this one without them.

    Raises:
        UserError: when they do not describe a machine.
    """
    here = this_machine()
    if flags.gpu_type is None and flags.num_gpus is not None and not here.has_gpu:
        raise UserError(f"--num_gpus {flags.num_gpus}: this machine has no GPU; add --gpu_type, e.g. h200")
    if flags.gpu_type is None and flags.num_gpus is None:
        num_gpus = max(here.num_processes, torch.cuda.device_count() if here.has_gpu else 1)
    else:
        num_gpus = flags.num_gpus or here.num_processes
    local = min(num_gpus, max(MAX_GPUS_PER_MACHINE, here.num_local_processes))
    if flags.num_nodes is not None:
        local, num_gpus = num_gpus, num_gpus * flags.num_nodes
    machine = replace(here, num_processes=num_gpus, num_local_processes=local)
    if flags.gpu_type is None:
        return replace(machine, host_bytes=flags.host_bytes or here.host_bytes)
    gpu_type = find_gpu_type(flags.gpu_type)
    name = f"{num_gpus} x {full_gpu_name(flags.gpu_type)}"
    return replace(machine, name=name, gpu_bytes=gpu_type.memory_bytes, gpu_type=gpu_type, host_bytes=flags.host_bytes)


def limited(machine: MachineSpec, limit: int | None) -> MachineSpec:
    """The machine with at most `limit` bytes of each GPU; without GPUs, of host memory for each process."""
    if limit is None:
        return machine
    name = f"{machine.name}, {format_bytes(limit)} of each"
    if machine.gpu_bytes is not None:
        device = machine.device_bytes or machine.gpu_bytes
        return replace(machine, name=name, gpu_bytes=min(machine.gpu_bytes, limit), device_bytes=device)
    of_processes = limit * machine.num_local_processes
    return replace(machine, host_bytes=min(machine.host_bytes or of_processes, of_processes))


@dataclass(frozen=True)
class Setup:
    """The model, DeepSpeed's config and the global batch on a machine."""

    config: LlamaConfig
    ds_config: dict[str, Any]
    machine: MachineSpec
    batch: GlobalBatch


def resolve_setup(
    arguments: PretrainArguments, config: LlamaConfig, machine: MachineSpec, *, block_length: int
) -> Setup:
    """Load DeepSpeed's config, with sizes for this model, and divide the global batch among the processes of a machine.

    Raises:
        UserError: when the config is wrong, or something does not divide exactly.
    """
    machine = limited(machine, arguments.plan.gpu_limit_bytes)
    ds_config = load_ds_config(arguments.trainer["deepspeed"])
    place = f"--deepspeed {arguments.trainer['deepspeed']}"
    zero = resolve_hpz(ds_config["zero_optimization"], machine, place=place)
    ds_config["zero_optimization"] = resolve_auto(zero, config)
    heads = (config.num_attention_heads, config.num_key_value_heads)
    batch = resolve_global_batch(arguments, heads, block_length, machine.num_processes)
    return Setup(config, ds_config, machine, batch)


@dataclass(frozen=True)
class ResolvedLayout:
    """The memory layout, and the choices of type and compilation in it; `arguments` have the latter resolved."""

    arguments: PretrainArguments
    compilation: Compilation
    gradient_type: GradientType
    layout: TrainingLayout


def resolve_layout(
    arguments: PretrainArguments,
    setup: Setup,
    *,
    num_steps: int | None,
    precision: Precision,
    was_compiled: bool | None = None,
) -> ResolvedLayout:
    """Decide compilation, gradient type and layout of a run; one of unknown length counts as short.

    `was_compiled` is the choice of the run that is resumed.

    Raises:
        UserError: when DeepSpeed's config contradicts what is decided.
    """
    flags, batch = arguments.model, setup.batch
    per_token = flops_per_token(setup.config, block_length=batch.block_length)
    compilation = choose_compilation(
        flags.compile_layers,
        recorded=was_compiled,
        is_possible=flags.layers_are_graphs
        and not arguments.data.document_masking
        and not arguments.trainer.get("torch_compile"),
        machine=setup.machine,
        flops=(num_steps or 0) * batch.tokens * per_token,
    )
    arguments = replace(arguments, model=replace(flags, compile_layers=compilation.is_on))
    layout = _layout(arguments, setup, precision)
    gradient_type = choose_gradient_type(layout.asked_sums, layout, setup.machine)
    settings = resolved_settings(batch, precision, gradient_type)
    agree_with_flags(setup.ds_config, settings, arguments.trainer["deepspeed"])
    layout = replace(layout, grad_accum_dtype=gradient_type.name)
    _check_8bit(layout, arguments.trainer["deepspeed"])
    return ResolvedLayout(arguments, compilation, gradient_type, layout)


def _check_8bit(layout: TrainingLayout, ds_config: str) -> None:
    """Check that bitsandbytes can count the weights that it updates at once, as it does in 32 bits.

    Raises:
        UserError: where it cannot; below stage 3 they are a process's part of all matrices.
    """
    size = max(group.size for group in sub_groups(layout))
    if layout.optimizer == "adamw_8bit" and size > MAX_8BIT_SIZE:
        raise UserError(
            f"--optim adamw_8bit --deepspeed {ds_config}: bitsandbytes updates at most {MAX_8BIT_SIZE:,} weights at "
            f"once, and here each process would update {size:,}; use ds_config.json, or --optim adamw_bf16"
        )


def _layout(arguments: PretrainArguments, setup: Setup, precision: Precision) -> TrainingLayout:
    """The layout with gradients accumulated in fp32, which is not decided yet."""
    flags, trainer, ds_config, batch = arguments.model, arguments.trainer, setup.ds_config, setup.batch
    checkpointing = _checkpointing_options(trainer)
    return TrainingLayout(
        shape=setup.config,
        zero=ZeroSettings.of(ds_config["zero_optimization"]),
        block_length=batch.block_length,
        micro_batch_blocks=batch.micro_batch_blocks,
        num_processes=batch.num_processes,
        num_local_processes=setup.machine.num_local_processes,
        precision=precision,
        grad_accum_dtype="fp32",
        optimizer=arguments.optimization.optim,
        evaluation_blocks=trainer["per_device_eval_batch_size"],
        offload_optimizer=offloads(ds_config, "optimizer"),
        offload_parameters=offloads(ds_config, "param"),
        optimizer_on_disk=offloads(ds_config, "optimizer", to="nvme"),
        parameters_on_disk=offloads(ds_config, "param", to="nvme"),
        sequence_parallel_size=flags.sequence_parallel_size,
        attention=choose_attention(arguments, setup.config, precision, setup.machine),
        masks_documents=arguments.data.document_masking,
        checkpoint_every=None if checkpointing is None else checkpointing.get("every_n_layers", 1),
        offload_checkpoints=bool(checkpointing and checkpointing.get("offload")),
        loss_tiles=flags.loss_tiles,
        mlp_tiles=flags.mlp_tiles,
        compiles_layers=bool(flags.compile_layers),
        computes_in_fp8=flags.fp8,
        asked_sums=arguments.optimization.grad_accum_dtype,
        frees_gradients_at_once=bool(ds_config["bf16"].get("immediate_grad_update")),
        device_bytes=setup.machine.device_bytes or setup.machine.gpu_bytes,
    )


def _checkpointing_options(trainer: dict[str, Any]) -> dict[str, Any] | None:
    """The Trainer's options of activation checkpointing, under either of their names; None when it is off."""
    flags = with_new_names(trainer)
    return (flags["activation_checkpointing_kwargs"] or {}) if flags["activation_checkpointing"] else None
