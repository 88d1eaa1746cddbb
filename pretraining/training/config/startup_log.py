"""The log of a run's configuration, before anything is loaded."""

import logging
import shutil
from collections.abc import Iterator

from pretraining.cli.deepspeed_config import zero_stage
from pretraining.cli.logs import IN_ONE_LINE, counted
from pretraining.planning.cost import disk_usage
from pretraining.planning.flops import num_parameters
from pretraining.planning.footprint import footprint
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import MachineSpec, TrainingLayout
from pretraining.planning.suggestions import offload_advice
from pretraining.system.formatting import format_bytes
from pretraining.system.host import bf16_instruction
from pretraining.training.checkpoint.reshard import describe_checkpoint
from pretraining.training.config.advice import RunAdvice
from pretraining.training.config.phase_lines import PhasePlan
from pretraining.training.config.run_config import RunConfig
from pretraining.training.config.trainer_arguments import bf16_product_time
from pretraining.training.data.order import WINDOW
from pretraining.training.distributed.machines import describe_machine, machines
from pretraining.training.model.compile import ASKED, TOO_SHORT
from pretraining.training.model.parent import unused_weights

logger = logging.getLogger(__name__)


def log_run_config(run_config: RunConfig) -> None:
    """Log what is about to run, and warn of what is likely a mistake."""
    batch, arguments = run_config.batch, run_config.arguments
    for line in map(describe_machine, machines()):
        logger.info("machine: %s", line)
    is_fp8 = run_config.layout.computes_in_fp8
    origin = "" if arguments.parent is None else " (config and weights)"
    logger.info(
        f"model: {arguments.model_name}{origin}, {num_parameters(run_config.config):,} parameters, blocks of "
        f"{batch.block_length:,} tokens, {run_config.precision}{', matrix multiplications in fp8' if is_fp8 else ''}"
    )
    for line in unused_weights(arguments):
        logger.warning(line)
    _log_precision(run_config)
    zero = f"ZeRO-{zero_stage(run_config.ds_config)}"
    logger.info(
        f"step: {batch.tokens:,} tokens = {counted(batch.micro_batch_blocks, 'block')} x "
        f"{counted(batch.gradient_accumulation_steps, 'micro step')} x {_describe_processes(batch)}, {zero}"
    )
    _warn_of_groups(batch, num_local=run_config.machine.num_local_processes)
    logger.info("gradients: accumulated in %s (%s)", run_config.gradient_type.name, run_config.gradient_type.reason)
    _log_compilation(run_config)
    _log_memory(run_config)
    advice = RunAdvice(
        arguments, run_config.mixture, run_config.layout, batch, run_config.num_steps, run_config.schedule
    )
    _log_length(run_config, unread=advice.unread())
    logger.info("run folder: %s", run_config.run_dir, extra=IN_ONE_LINE)
    _log_schedule(run_config)
    for warning in advice.warnings():
        logger.warning(warning)
    if run_config.start.checkpoint is not None:
        stage = run_config.ds_config["zero_optimization"]["stage"]
        checkpoint = describe_checkpoint(run_config.start.checkpoint, num_processes=batch.num_processes, stage=stage)
        logger.info("resuming from %s", checkpoint)
    if is_fp8 and not run_config.machine.has_gpu:
        logger.warning("--fp8: no GPU is here, so fp8 is emulated: the same casts, but slower than without them")
    _warn_of_disk(run_config)


def _log_precision(run_config: RunConfig) -> None:
    """Log the reason for the precision of a CPU, where no flag sets it."""
    trainer = run_config.arguments.trainer
    if run_config.machine.has_gpu or trainer["bf16"] is not None or trainer.get("fp16"):
        return
    if run_config.start.checkpoint is not None:
        reason = "as the run was started"
    elif (name := bf16_instruction()) is not None:
        product_time = bf16_product_time()
        reason = f"this processor has {name}; a matrix multiplication takes {product_time:.2f} of its time in fp32"
        if product_time > 1:
            logger.warning("bf16: multiplications take %.1f times as long as in fp32; try --bf16 false", product_time)
    else:
        reason = "this processor has no instructions for bf16, which it would emulate"
    logger.info("precision: %s (%s)", run_config.precision, reason)


def _describe_processes(batch: GlobalBatch) -> str:
    if batch.sequence_parallel_size == 1:
        return f"{batch.num_processes} process" + "es" * (batch.num_processes != 1)
    return f"{counted(batch.num_groups, 'group')} of {batch.sequence_parallel_size} processes that share each block"


def _warn_of_groups(batch: GlobalBatch, *, num_local: int) -> None:
    size = batch.sequence_parallel_size
    if num_local < batch.num_processes and num_local % size:
        logger.warning(
            "--sequence_parallel_size %d: groups span machines of %d processes, and each layer sends its activations "
            "between them; use a size that divides %d",
            size,
            num_local,
            num_local,
        )


def _log_compilation(run_config: RunConfig) -> None:
    """Log the reason for compiling on a CPU or not, where no flag sets it and the run is long."""
    compilation = run_config.compilation
    if not run_config.machine.has_gpu and compilation.reason not in (ASKED, TOO_SHORT):
        logger.info("layers: %s (%s)", "compiled" if compilation.is_on else "not compiled", compilation.reason)


def _log_memory(run_config: RunConfig) -> None:
    needed, machine = footprint(run_config.layout, has_gpu=run_config.machine.has_gpu), run_config.machine
    found = []
    if machine.gpu_bytes is not None:
        found.append(f"{format_bytes(needed.gpu_bytes)} of {format_bytes(machine.gpu_bytes)} on each GPU")
    if machine.host_bytes is not None:
        found.append(f"{format_bytes(needed.host_bytes)} of {format_bytes(machine.host_bytes)} in host memory")
    logger.info("planned: %s", ", ".join(found))
    for line in gpu_lines(run_config.layout, machine, run_config.batch):
        logger.info(line)


def gpu_lines(layout: TrainingLayout, machine: MachineSpec, batch: GlobalBatch) -> Iterator[str]:
    """Describe what is not computed for a GPU that is not listed, and what offloading copies; nothing on a CPU."""
    if not machine.has_gpu:
        return
    if machine.gpu_type is None:
        yield f"MFU: not logged, because the peak of this GPU is not listed ({machine.name})"
    if layout.offload_optimizer:
        yield offload_advice(layout, machine, batch)


def _log_length(run_config: RunConfig, *, unread: str | None) -> None:
    """Log steps, tokens and epochs, of each source of a mixture too."""
    batch, num_steps = run_config.batch, run_config.num_steps
    num_blocks, size = num_steps * batch.blocks, sum(run_config.mixture.num_blocks("train"))
    logger.info(
        f"run: {counted(num_steps, 'step')}, {num_steps * batch.tokens:,} tokens, {num_blocks / size:.2f} epochs over "
        f"{counted(size, 'block')}{'' if unread is None else f' ({unread})'}"
    )
    for line in phase_lines(run_config):
        logger.info(line)
    epochs = run_config.epochs_by_source(num_blocks)
    for part, share in zip(run_config.mixture.parts, run_config.shares, strict=True):
        if f"epoch/{part.source}" in epochs:
            number = epochs[f"epoch/{part.source}"]
            logger.info(
                f"source {part.source}: {WINDOW * share:.0f} of 1,000 blocks, {number:.2f} epochs of {part.store.name}"
            )


def phase_lines(run_config: RunConfig) -> Iterator[str]:
    """Describe the phases of a run; nothing without."""
    phases, batch, schedule = run_config.arguments.data.phases, run_config.batch, run_config.schedule
    if phases:
        mixture, manifests = run_config.mixture, run_config.manifests
        yield from PhasePlan(
            phases, run_config.phase_ends, schedule, batch, mixture, manifests, run_config.order
        ).lines()


def _log_schedule(run_config: RunConfig) -> None:
    schedule, num_steps = run_config.schedule, run_config.num_steps
    first, last = schedule.learning_rate(1), schedule.learning_rate(num_steps)
    parts = schedule.parts(num_steps)
    # Of a warmup as long as its part, neither the end nor what follows is in the run.
    shapes = ["warmup" if part.warmup_steps >= length > 1 else part.shape for part, length in parts]
    has_peak = schedule.warmup_steps > 1 and shapes[0] != "warmup"
    peak = f"{schedule.peak:.2e} at step {schedule.warmup_steps:,}, " if has_peak else ""
    logger.info(f"learning rate: {first:.2e} at step 1, {peak}{', then '.join(shapes)} to {last:.2e}")
    if run_config.arguments.optimization.schedule_steps not in (None, num_steps):
        logger.info(f"schedule: of {counted(schedule.num_steps, 'step')}, the run has {num_steps:,}")


def _warn_of_disk(run_config: RunConfig) -> None:
    num_tokens = run_config.num_steps * run_config.batch.tokens
    disk = disk_usage(run_config.arguments, run_config.layout, num_tokens=num_tokens)
    run_dir = run_config.run_dir
    existing = next(folder for folder in (run_dir, *run_dir.resolve().parents) if folder.is_dir())
    needed, free = disk.checkpoints_bytes + disk.exports_bytes, shutil.disk_usage(existing).free
    if needed > free:
        logger.warning(
            "--output_dir %s: has %s free, and checkpoints and exported models take up to %s; use another folder, or a "
            "smaller --save_total_limit",
            run_dir,
            format_bytes(free),
            format_bytes(needed),
        )
