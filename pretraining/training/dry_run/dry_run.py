"""--dry_run: the plan of a run, on any machine, with its blocks or without them."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture, load_mixture, read_dataset_texts
from pretraining.data.store.manifest import MANIFEST_NAME
from pretraining.errors import UserError
from pretraining.planning.cost import disk_usage, plan_costs
from pretraining.planning.fit import certainly_fails, problems
from pretraining.planning.layout import MachineSpec
from pretraining.planning.suggestions import find_suggestions, offload_advice
from pretraining.planning.table import PlannedRun, plan_table
from pretraining.system.gpus import full_gpu_name
from pretraining.system.launchers import process_rank
from pretraining.training.config.layout import ResolvedLayout, Setup, planned_machine, resolve_layout, resolve_setup
from pretraining.training.config.resume import ResumePoint
from pretraining.training.config.run_config import resolve_num_steps
from pretraining.training.config.trainer_arguments import choose_precision
from pretraining.training.model.build import load_model_config
from pretraining.training.model.fp8 import unsupported_sizes


def print_plan(arguments: PretrainArguments) -> None:
    """Write the plan to stdout.

    Raises:
        UserError: when it cannot be planned, or, after the table, when it does not fit.
    """
    run = make_plan(arguments, planned_machine(arguments.plan), local_mixture(arguments))
    needs = problems(run.footprint, run.machine)
    is_certain = certainly_fails(run.footprint, run.machine)
    suggestions = find_suggestions(run.layout, run.machine, run.batch) if needs else []
    if process_rank() == 0:
        sys.stdout.write(plan_table(run, suggestions, problems=needs, is_certain=is_certain))
        sys.stdout.flush()
    if is_certain:
        raise UserError(f"--model {run.model}: does not fit {run.machine.name}: needs {' and '.join(needs)}")


def make_plan(arguments: PretrainArguments, machine: MachineSpec, mixture: Mixture | None) -> PlannedRun:
    """Plan a run; no folder is created and no process group.

    Raises:
        UserError: when it cannot be planned.
    """
    if arguments.finds_micro_batch:  # the smallest that a run would try
        arguments = replace(arguments, trainer={**arguments.trainer, "per_device_train_batch_size": 1})
    origin = None if mixture is None else mixture.origin
    config = load_model_config(_with_vocabulary(arguments).model, origin)
    block_length = origin.block_length if origin is not None else arguments.data.block_length
    setup = resolve_setup(arguments, config, machine, block_length=block_length or config.max_position_embeddings)
    has_bf16 = None if arguments.plan.gpu_type is None or machine.gpu_type is None else machine.gpu_type.has_bf16
    precision = choose_precision(arguments.trainer, has_gpu=machine.has_gpu, has_bf16=has_bf16)
    num_blocks = None if mixture is None else sum(mixture.num_blocks("train"))
    num_steps = resolve_num_steps(arguments, setup.batch, num_blocks, ResumePoint())
    resolved = resolve_layout(arguments, setup, num_steps=num_steps, precision=precision)
    if resolved.layout.computes_in_fp8 and (unsupported := unsupported_sizes(resolved.layout)):
        raise UserError(*unsupported)
    num_tokens = None if num_steps is None else num_steps * setup.batch.tokens
    return PlannedRun(
        model=arguments.model.model,
        notes=tuple(_notes(setup, resolved, has_blocks=mixture is not None)),
        layout=resolved.layout,
        machine=machine,
        batch=setup.batch,
        num_steps=num_steps,
        costs=plan_costs(arguments.plan, resolved.layout, setup.batch, machine.gpu_type, num_tokens=num_tokens),
        disk=disk_usage(arguments, resolved.layout, num_tokens=num_tokens),
    )


def _notes(setup: Setup, resolved: ResolvedLayout, *, has_blocks: bool) -> Iterator[str]:
    """What the plan assumes or does not count."""
    arguments, layout = resolved.arguments, resolved.layout
    if not has_blocks:
        source = "--block_length" if arguments.data.block_length else "max_position_embeddings"
        yield (
            f"--dataset {' '.join(arguments.data.dataset)}: no blocks are here, so this is planned for blocks of "
            f"{layout.block_length:,} tokens ({source}) and a vocabulary of {setup.config.vocab_size:,}"
        )
    if not setup.machine.has_gpu:
        yield "no GPU is here and none was named (--gpu_type h200), so this is planned for the CPU"
    if arguments.trainer.get("use_liger_kernel"):
        yield "--use_liger_kernel: needs less memory than planned here"
    yield f"gradients are accumulated in {resolved.gradient_type.name}: {resolved.gradient_type.reason}"
    if layout.optimizer_on_disk or layout.parameters_on_disk:
        yield "what is offloaded to disk (nvme) and its buffers in host memory are not counted"
    gpu_type, asked = setup.machine.gpu_type, arguments.plan.gpu_type
    if asked is not None and full_gpu_name(asked) != asked:
        yield f"--gpu_type {asked}: planned for {full_gpu_name(asked)}"
    if gpu_type is not None and not gpu_type.has_bf16:
        yield f"{gpu_type.driver_name} has no bf16: without --fp16 true it trains in fp32; its peak is that of fp16"
    if layout.offload_optimizer and setup.machine.has_gpu:
        yield offload_advice(layout, setup.machine, setup.batch)


def local_mixture(arguments: PretrainArguments) -> Mixture | None:
    """Load the block stores if all are on this machine; a plan creates and downloads nothing."""
    flags = arguments.data
    if flags.is_synthetic:
        return None
    stores = [store for _, store, _ in read_dataset_texts(flags.dataset)]
    if not all((Path(store) / MANIFEST_NAME).is_file() for store in stores):
        return None
    return load_mixture(flags.dataset, revision=flags.dataset_revision)


def _with_vocabulary(arguments: PretrainArguments) -> PretrainArguments:
    """The flags with the vocabulary of synthetic blocks, which --vocab_size sets."""
    if not arguments.data.is_synthetic:
        return arguments
    overrides = [f"vocab_size={arguments.data.vocab_size}", *arguments.model.model_overrides]
    return replace(arguments, model=replace(arguments.model, model_overrides=overrides))
