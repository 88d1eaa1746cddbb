"""The plan of a run: what it is on a machine, what it needs there, and what its start would warn of."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from pretraining.cli.arguments.phases import phase_ends
from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture
from pretraining.errors import UserError
from pretraining.planning.cost import disk_usage, plan_costs
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import MachineSpec
from pretraining.planning.speed import Speeds
from pretraining.planning.suggestions import offload_advice
from pretraining.planning.table import PlannedRun
from pretraining.system.gpus import full_gpu_name
from pretraining.training.config.advice import RunAdvice, empty_split_warnings
from pretraining.training.config.early_checks import check_profiled_steps
from pretraining.training.config.layout import ResolvedLayout, Setup, resolve_layout, resolve_setup
from pretraining.training.config.phase_lines import PhasePlan
from pretraining.training.config.resume import ResumePoint
from pretraining.training.config.run_config import resolve_num_steps
from pretraining.training.config.trainer_arguments import choose_precision
from pretraining.training.model.build import load_model_config
from pretraining.training.model.fp8 import unsupported_sizes
from pretraining.training.model.parent import unused_weights
from pretraining.training.optim.schedule import make_schedule

WITHOUT_BLOCKS = "--dataset synthetic"  # no blocks are made for a plan


def make_plan(arguments: PretrainArguments, machine: MachineSpec, mixture: Mixture | None) -> PlannedRun:
    """Plan a run; no folder is created and no process group.

    Raises:
        UserError: when it cannot be planned.
    """
    if arguments.finds_micro_batch:  # the smallest that a run would try
        arguments = replace(arguments, trainer={**arguments.trainer, "per_device_train_batch_size": 1})
    origin = None if mixture is None else mixture.origin
    try:
        config = load_model_config(_with_vocabulary(arguments).model, origin)
    except UserError as error:
        raise error if mixture is None else UserError(*_with_way_out(error.problems, mixture)) from None
    block_length = origin.block_length if origin is not None else arguments.data.block_length
    setup = resolve_setup(arguments, config, machine, block_length=block_length or config.max_position_embeddings)
    machine = setup.machine  # with --gpu_memory_limit
    has_bf16 = None if arguments.plan.gpu_type is None or machine.gpu_type is None else machine.gpu_type.has_bf16
    precision = choose_precision(arguments.trainer, has_gpu=machine.has_gpu, has_bf16=has_bf16)
    num_blocks = None if mixture is None else sum(mixture.num_blocks("train"))
    num_steps = resolve_num_steps(arguments, setup.batch, num_blocks, ResumePoint())
    check_profiled_steps(arguments, num_steps)
    resolved = resolve_layout(arguments, setup, num_steps=num_steps, precision=precision)
    if resolved.layout.computes_in_fp8 and (unsupported := unsupported_sizes(resolved.layout)):
        raise UserError(*unsupported)
    if resolved.layout.computes_in_fp8 and machine.gpu_type and not machine.gpu_type.has_fp8:
        raise UserError(
            f"--fp8: needs GPUs of the Ada or Hopper generation or newer, not {machine.name}; remove the flag"
        )
    num_tokens = None if num_steps is None else num_steps * setup.batch.tokens
    advice, notes = _advice(mixture, setup, resolved, num_steps), _notes(setup, resolved, mixture)
    obstacle = None if advice is None else advice.obstacle
    return PlannedRun(
        model=arguments.model_name,
        notes=(*unused_weights(arguments), *notes, *_data_notes(advice)),
        layout=resolved.layout,
        machine=machine,
        batch=setup.batch,
        num_steps=num_steps,
        costs=plan_costs(arguments.plan, resolved.layout, setup.batch, machine.gpu_type, num_tokens=num_tokens),
        disk=disk_usage(arguments, resolved.layout, num_tokens=num_tokens),
        speeds=Speeds.of(arguments.plan),
        phases=tuple(_phase_lines(arguments, setup.batch, num_steps, mixture)),
        evaluation=None if advice is None else advice.evaluation,
        obstacle=None if obstacle is None else f"{obstacle}; to plan without these blocks, use {WITHOUT_BLOCKS}",
    )


def _phase_lines(
    arguments: PretrainArguments, batch: GlobalBatch, num_steps: int | None, mixture: Mixture | None
) -> Iterator[str]:
    phases = arguments.data.phases
    if phases and num_steps is not None:
        schedule = make_schedule(arguments, num_steps=num_steps)
        yield from PhasePlan(phases, phase_ends(phases, num_steps), schedule, batch, mixture).lines()


def _advice(mixture: Mixture | None, setup: Setup, resolved: ResolvedLayout, num_steps: int | None) -> RunAdvice | None:
    """Advice on the run; None where its blocks are not here or its learning rate cannot be scheduled."""
    if mixture is None or num_steps is None:
        return None
    schedule = make_schedule(resolved.arguments, num_steps=num_steps)
    return RunAdvice(resolved.arguments, mixture, resolved.layout, setup.batch, num_steps, schedule)


def _data_notes(advice: RunAdvice | None) -> Iterator[str]:
    """What the start of the run would warn of."""
    if advice is None:
        return
    evaluates = advice.arguments.trainer["eval_strategy"] != "no"
    yield from empty_split_warnings(advice.mixture, evaluates=evaluates)
    yield from advice.warnings()
    if (unread := advice.unread()) is not None:
        yield f"the run reads {unread}"


def _with_way_out(problems: Sequence[str], mixture: Mixture) -> Iterator[str]:
    """Problems of blocks that may only happen to be here, e.g. of another model, with how to plan without them."""
    for problem in problems:
        is_of_blocks = problem.startswith("--dataset")
        yield f"{problem}; to plan without {mixture.names}, use {WITHOUT_BLOCKS}" if is_of_blocks else problem


def _notes(setup: Setup, resolved: ResolvedLayout, mixture: Mixture | None) -> Iterator[str]:
    """What the plan assumes or does not count."""
    arguments, layout = resolved.arguments, resolved.layout
    if mixture is None:
        source = "--block_length" if arguments.data.block_length else "max_position_embeddings"
        yield (
            f"--dataset {' '.join(chain.from_iterable(arguments.data.datasets))}: no blocks are here, so this is "
            "planned for blocks of "
            f"{layout.block_length:,} tokens ({source}) and a vocabulary of {setup.config.vocab_size:,}"
        )
    else:
        yield (
            f"--dataset {mixture.names}: planned for {sum(mixture.num_blocks('train')):,} blocks of "
            f"{layout.block_length:,} tokens and a vocabulary of {setup.config.vocab_size:,}"
            + ("" if arguments.data.phases else f"; without them: {WITHOUT_BLOCKS}")
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


def _with_vocabulary(arguments: PretrainArguments) -> PretrainArguments:
    """The flags with the vocabulary of synthetic blocks, which --vocab_size sets."""
    if not arguments.data.is_synthetic:
        return arguments
    overrides = [f"vocab_size={arguments.data.vocab_size}", *arguments.model.model_overrides]
    return replace(arguments, model=replace(arguments.model, model_overrides=overrides))
