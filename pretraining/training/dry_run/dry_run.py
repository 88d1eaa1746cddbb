"""--dry_run: what a run needs and takes, on any machine, with the blocks or without them."""

import sys
from dataclasses import replace
from pathlib import Path

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.cli.deepspeed_config import agree_with_flags, load_ds_config
from pretraining.data.mixture import Mixture, load_mixture, read_dataset_texts
from pretraining.data.store.manifest import MANIFEST_NAME
from pretraining.errors import UserError
from pretraining.planning.cost import disk_usage, plan_costs
from pretraining.planning.fit import choose_gradient_type, problems, resolved_settings
from pretraining.planning.footprint import footprint
from pretraining.planning.machine import MachineSpec
from pretraining.planning.suggestions import find_suggestions
from pretraining.planning.table import PlannedRun, plan_table
from pretraining.system.launchers import process_rank
from pretraining.training.config.batch import plan_batch
from pretraining.training.config.machine import planned_machine
from pretraining.training.config.memory_layout import make_layout, plan_layers
from pretraining.training.config.resume import ResumePoint
from pretraining.training.config.run_config import resolve_num_steps
from pretraining.training.config.trainer_arguments import choose_precision
from pretraining.training.model.build import load_model_config
from pretraining.training.model.fields import Heads
from pretraining.training.model.fp8 import unsupported_sizes


def say_plan(arguments: PretrainArguments) -> None:
    """Write the plan to stdout.

    Raises:
        UserError: when it cannot be planned, or, after all was said, when it does not fit.
    """
    run = plan_without_start(arguments, planned_machine(arguments.plan), blocks_here(arguments))
    needed = footprint(run.layout, has_gpu=run.machine.has_gpu)
    needs, is_certain = problems(needed, run.machine), bool(problems(needed.counted, run.machine))
    remedies = find_suggestions(run.layout, run.machine, run.batch) if needs else []
    if process_rank() == 0:
        sys.stdout.write(plan_table(run, remedies, problems=needs, is_certain=is_certain))
        sys.stdout.flush()
    if is_certain:
        raise UserError(f"--model {run.model}: does not fit {run.machine.name}: needs {' and '.join(needs)}")


def plan_without_start(arguments: PretrainArguments, machine: MachineSpec, mixture: Mixture | None) -> PlannedRun:
    """Everything that the table says; no folder is made and no process joins another."""
    ds_config, notes = load_ds_config(arguments.trainer["deepspeed"]), []
    config = load_model_config(_with_vocabulary(arguments).model, None if mixture is None else mixture.origin)
    if mixture is None:
        block_length = arguments.data.block_length or config.max_position_embeddings
        source = "--block_length" if arguments.data.block_length else "max_position_embeddings"
        notes.append(
            f"--dataset {' '.join(arguments.data.dataset)}: no blocks are here, so this is planned for blocks of "
            f"{block_length:,} tokens ({source}) and a vocabulary of {config.vocab_size:,}"
        )
    else:
        block_length = mixture.origin.block_length
    if not machine.has_gpu:
        notes.append("no GPU is here and none was named (--gpu_type h200), so this is planned for the CPU")
    if arguments.trainer.get("use_liger_kernel"):
        notes.append("--use_liger_kernel: takes less than is said here")
    batch = plan_batch(
        arguments, Heads(config.num_attention_heads, config.num_key_value_heads), block_length, machine.num_processes
    )
    precision = choose_precision(arguments.trainer, has_gpu=machine.has_gpu, here=arguments.plan.gpu_type is None)
    num_blocks = None if mixture is None else sum(mixture.num_blocks("train"))
    num_steps = resolve_num_steps(arguments, batch, num_blocks, ResumePoint())
    arguments, _ = plan_layers(arguments, config, batch, num_steps=num_steps, machine=machine)
    layout = make_layout(arguments, config, ds_config, batch=batch, precision=precision, machine=machine)
    gradient_type = choose_gradient_type(arguments.optimization.grad_accum_dtype, layout, machine)
    layout = replace(layout, grad_accum_dtype=gradient_type.name)
    agree_with_flags(ds_config, resolved_settings(batch, precision, gradient_type), arguments.trainer["deepspeed"])
    if layout.computes_in_fp8 and (odd := unsupported_sizes(layout)):
        raise UserError(*odd)
    notes.append(f"gradients are added up in {gradient_type.name}: {gradient_type.reason}")
    if layout.optimizer_on_disk or layout.parameters_on_disk:
        notes.append("what is offloaded to disk (nvme) and its buffers in host memory are not counted")
    if layout.offload_optimizer:
        notes.append("offloading takes more time than is said here; --profile_plan says how much")
    num_tokens = None if num_steps is None else num_steps * batch.tokens
    return PlannedRun(
        model=arguments.model.model,
        notes=tuple(notes),
        layout=layout,
        machine=machine,
        batch=batch,
        num_steps=num_steps,
        costs=plan_costs(arguments.plan, layout, machine.gpu_type, num_tokens=num_tokens),
        kept=disk_usage(arguments, layout, num_tokens=num_tokens),
    )


def blocks_here(arguments: PretrainArguments) -> Mixture | None:
    """The block stores, when they all lie on this machine; nothing is made or brought here for a plan."""
    flags = arguments.data
    if flags.is_synthetic:
        return None
    stores = [store for _, store, _ in read_dataset_texts(flags.dataset)]
    if not all((Path(store) / MANIFEST_NAME).is_file() for store in stores):
        return None
    return load_mixture(flags.dataset, revision=flags.dataset_revision)


def _with_vocabulary(arguments: PretrainArguments) -> PretrainArguments:
    """Synthetic blocks have the vocabulary of a flag."""
    if not arguments.data.is_synthetic:
        return arguments
    overrides = [f"vocab_size={arguments.data.vocab_size}", *arguments.model.model_overrides]
    return replace(arguments, model=replace(arguments.model, model_overrides=overrides))
