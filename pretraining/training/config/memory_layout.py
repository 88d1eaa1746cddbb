"""The memory layout of a run from its flags, and whether its layers are compiled."""

from dataclasses import replace
from typing import Any

from transformers import LlamaConfig

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.cli.deepspeed_config import offloads
from pretraining.planning.flops import flops_per_token
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import TrainingLayout, ZeroSettings
from pretraining.planning.machine import MachineSpec
from pretraining.training.model.compile import Compilation, choose_compilation


def make_layout(
    arguments: PretrainArguments,
    config: LlamaConfig,
    ds_config: dict[str, Any],
    *,
    batch: GlobalBatch,
    precision: str,
    machine: MachineSpec,
) -> TrainingLayout:
    """How the flags lay the model out; gradients are added up in fp32 in it, which is not decided yet."""
    flags, trainer = arguments.model, arguments.trainer
    options = _checkpointing_options(trainer)
    return TrainingLayout(
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
        masks_documents=arguments.data.document_masking,
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
    machine: MachineSpec,
    recorded: bool | None = None,
) -> tuple[PretrainArguments, Compilation]:
    """The flags with that of compilation decided, and why; a run of unknown length counts as a short one."""
    flags, trainer = arguments.model, arguments.trainer
    is_measured = not arguments.data.document_masking and not trainer.get("torch_compile")
    compilation = choose_compilation(
        flags.compile_layers,
        recorded=recorded,
        is_possible=flags.layers_are_graphs and is_measured,
        machine=machine,
        flops=(num_steps or 0) * batch.tokens * flops_per_token(config, block_length=batch.block_length),
    )
    return replace(arguments, model=replace(flags, compile_layers=compilation.is_on)), compilation


def _checkpointing_options(trainer: dict[str, Any]) -> dict[str, Any] | None:
    """The Trainer's options of activation checkpointing, by its new name or its old one; None when it is off."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        if trainer.get(name):
            return trainer.get(f"{name}_kwargs") or {}
    return None
