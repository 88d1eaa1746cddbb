"""What a run needs of a machine, whether it fits, and in which type its gradients are added up."""

import logging
from dataclasses import dataclass, replace
from typing import Any

from transformers import LlamaConfig

from pretraining.cli.ds_config import offloads
from pretraining.cli.errors import UserError
from pretraining.cli.pretrain_arguments import PretrainArguments
from pretraining.machine.flops import flops_per_token
from pretraining.machine.footprint import Footprint, footprint
from pretraining.machine.layout import Layout, ZeroSettings
from pretraining.runs.log_lines import format_bytes
from pretraining.training.global_batch import GlobalBatch
from pretraining.training.layers import Compilation, choose_compilation
from pretraining.training.planned_machine import Machine

WORKS_ON_ANY_MACHINE = (
    "what works on this machine: make quickstart, or deepspeed --num_gpus=2 pretrain.py --recipe "
    "recipes/quickstart/pretrain.yaml"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GradientType:
    """The type in which micro steps are added up, and why it is that one."""

    name: str
    reason: str


def make_layout(
    arguments: PretrainArguments,
    config: LlamaConfig,
    ds_config: dict[str, Any],
    *,
    batch: GlobalBatch,
    precision: str,
    machine: Machine,
) -> Layout:
    """How the flags lay the model out; gradients are added up in fp32 in it, which is not decided yet."""
    flags, trainer = arguments.model, arguments.trainer
    options = _checkpointing_options(trainer)
    return Layout(
        shape=config,
        zero=ZeroSettings.of(ds_config["zero_optimization"], hidden_size=config.hidden_size),
        block_length=batch.block_length,
        micro_batch_blocks=batch.micro_batch_blocks,
        evaluation_blocks=trainer["per_device_eval_batch_size"],
        num_processes=batch.num_processes,
        num_local_processes=machine.num_local_processes,
        precision=precision,
        grad_accum_dtype="fp32",
        optimizer=arguments.optimization.optim,
        offload_optimizer=offloads(ds_config, "optimizer"),
        offload_parameters=offloads(ds_config, "param"),
        optimizer_on_disk=offloads(ds_config, "optimizer", to="nvme"),
        parameters_on_disk=offloads(ds_config, "param", to="nvme"),
        sequence_parallel_size=flags.sequence_parallel_size,
        attention=flags.attention_implementation,
        isolates_documents=arguments.data.isolate_documents,
        checkpoint_every=None if options is None else options.get("every_n_layers", 1),
        offload_checkpoints=bool(options and options.get("offload")),
        loss_tiles=flags.loss_tiles,
        mlp_tiles=flags.mlp_tiles,
        compiles_layers=bool(flags.compile_layers),
        computes_in_fp8=flags.fp8,
    )


def plan_layers(
    arguments: PretrainArguments,
    config: LlamaConfig,
    batch: GlobalBatch,
    *,
    num_steps: int | None,
    machine: Machine,
    recorded: bool | None = None,
) -> tuple[PretrainArguments, Compilation]:
    """The flags with that of compilation decided, and why; a run of unknown length counts as a short one."""
    flags, trainer = arguments.model, arguments.trainer
    is_measured = not arguments.data.isolate_documents and not trainer.get("torch_compile")
    compilation = choose_compilation(
        flags.compile_layers,
        recorded=recorded,
        is_possible=flags.layers_are_graphs and is_measured,
        machine=machine,
        flops=(num_steps or 0) * batch.tokens * flops_per_token(config, block_length=batch.block_length),
    )
    return replace(arguments, model=replace(flags, compile_layers=compilation.is_on)), compilation


def fits(layout: Layout, machine: Machine) -> bool:
    """Whether the machine has the memory, for what is assumed too."""
    return not problems(footprint(layout, has_gpu=machine.has_gpu), machine)


def problems(needed: Footprint, machine: Machine) -> list[str]:
    """In which memory it does not fit, as words."""
    found = []
    if machine.gpu_bytes is not None and needed.gpu_bytes > machine.gpu_bytes:
        number, room = machine.num_processes, format_bytes(machine.gpu_bytes)
        where = f"the GPU, which has {room}" if number == 1 else f"each of {number} GPUs, which have {room}"
        found.append(f"{format_bytes(needed.gpu_bytes)} on {where}")
    if machine.host_bytes is not None and needed.host_bytes > machine.host_bytes:
        available = f"{format_bytes(machine.host_bytes)} available"
        where = f"of host memory, with {available}" if machine.has_gpu else f"of memory; no GPU is here and {available}"
        found.append(f"{format_bytes(needed.host_bytes)} {where}")
    return found


def choose_gradient_type(asked: str, layout: Layout, machine: Machine) -> GradientType:
    """In which type micro steps are added up: as asked for, otherwise fp32 unless only half of it fits the GPUs.

    Raises:
        UserError: for bf16 sums of fp16 gradients.
    """
    if asked == "bf16" and layout.precision == "fp16":
        raise UserError("--grad_accum_dtype bf16 --fp16: gradients of fp16 are not added up in bf16; give fp32")
    if layout.precision == "fp32":
        return GradientType("fp32", "as the weights")
    if asked != "auto":
        return GradientType(asked, "as asked for")
    # By the GPU alone: host memory is another one at each start and on each rank, and the sums must not be.
    full, half = replace(layout, grad_accum_dtype="fp32"), replace(layout, grad_accum_dtype=layout.precision)
    room = replace(machine, host_bytes=None)
    if not machine.has_gpu or fits(full, room) or not fits(half, room):
        return GradientType("fp32", "sums in half precision lose small gradients")
    return GradientType(layout.precision, f"fp32 would not fit the {format_bytes(machine.gpu_bytes or 0)} of a GPU")


def resolved_settings(batch: GlobalBatch, precision: str, gradient_type: GradientType) -> dict[str, Any]:
    """What a DeepSpeed config may agree with, once machine, model and data are known, by its place there."""
    return {
        "train_batch_size": batch.blocks,
        "train_micro_batch_size_per_gpu": batch.micro_batch_blocks,
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
        "bf16.enabled": precision == "bf16",
        "fp16.enabled": precision == "fp16",
        "data_types.grad_accum_dtype": gradient_type.name,
    }


def _checkpointing_options(trainer: dict[str, Any]) -> dict[str, Any] | None:
    """The Trainer's options of activation checkpointing, by its new name or its old one; None when it is off."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if trainer.get(name):
            return trainer.get(f"{name}_kwargs") or {}
    return None
