"""What is about to run, said before anything is loaded."""

import logging
import shutil

from pretraining.cli.logs import IN_ONE_LINE, counted
from pretraining.planning.cost import disk_usage
from pretraining.planning.flops import num_parameters
from pretraining.planning.footprint import footprint
from pretraining.planning.global_batch import GlobalBatch
from pretraining.system.formatting import format_bytes
from pretraining.system.processor import bf16_instruction
from pretraining.training.checkpoint.reshard import describe_checkpoint
from pretraining.training.config.run_config import RunConfig
from pretraining.training.config.trainer_arguments import bf16_product_time
from pretraining.training.model.compile import ASKED, TOO_SHORT

logger = logging.getLogger(__name__)


def log_run_config(plan: RunConfig) -> None:
    """Say what is about to run."""
    batch, schedule = plan.batch, plan.schedule
    num_blocks = plan.num_steps * batch.blocks
    logger.info(
        f"model: {plan.arguments.model.model}, {num_parameters(plan.config):,} parameters, blocks of "
        f"{batch.block_length:,} tokens, {plan.precision}{', products in fp8' if plan.layout.computes_in_fp8 else ''}"
    )
    _announce_precision(plan)
    logger.info(
        f"step: {batch.tokens:,} tokens = {counted(batch.micro_batch_blocks, 'block')} x "
        f"{counted(batch.gradient_accumulation_steps, 'micro step')} x {_said_processes(batch)}, ZeRO-3"
    )
    logger.info("gradients: added up in %s (%s)", plan.gradient_type.name, plan.gradient_type.reason)
    _announce_compilation(plan)
    _announce_memory(plan)
    logger.info(
        f"run: {counted(plan.num_steps, 'step')}, {plan.num_steps * batch.tokens:,} tokens, "
        f"{num_blocks / sum(plan.order.num_blocks):.2f} epochs over {counted(sum(plan.order.num_blocks), 'block')}"
    )
    logger.info("run folder: %s", plan.run_dir, extra=IN_ONE_LINE)
    peak = f"{schedule.peak:.2e} at step {schedule.warmup_steps:,}, " if schedule.warmup_steps > 1 else ""
    logger.info(
        f"learning rate: {schedule.learning_rate(1):.2e} at step 1, {peak}{schedule.shape} to "
        f"{schedule.learning_rate(plan.num_steps):.2e}"
    )
    for part, share in zip(plan.mixture.parts, plan.order.blocks_per_window, strict=True):
        if part.source is not None and len(plan.mixture.parts) > 1:
            epochs = plan.epochs_by_source(num_blocks)[f"epoch/{part.source}"]
            logger.info(f"source {part.source}: {share} of 1,000 blocks, {epochs:.2f} epochs of {part.store.name}")
    if plan.start.checkpoint is not None:
        checkpoint = describe_checkpoint(plan.start.checkpoint, num_processes=batch.num_processes)
        logger.info("resuming from %s", checkpoint)
    _warn_of_warm_up(plan)
    if plan.layout.computes_in_fp8 and not plan.machine.has_gpu:
        logger.warning("--fp8: no GPU is here, so fp8 is emulated: the same casts, and slower than without them")
    _warn_of_disk(plan)


def _announce_precision(plan: RunConfig) -> None:
    """Log why a CPU trains in the precision that it does, where no flag says so."""
    if plan.machine.has_gpu or plan.arguments.trainer["bf16"] is not None or plan.arguments.trainer.get("fp16"):
        return
    if plan.start.checkpoint is not None:
        reason = "as the run was started"
    elif (name := bf16_instruction()) is not None:
        product_time = bf16_product_time()
        reason = f"this processor has {name}; a matrix product takes {product_time:.2f} of its time in fp32"
        if product_time > 1:
            logger.warning("bf16: products take %.1f times as long as in fp32 here; try --bf16 false", product_time)
    else:
        reason = "this processor has no instructions for bf16, which it would emulate"
    logger.info("precision: %s (%s)", plan.precision, reason)


def _announce_compilation(plan: RunConfig) -> None:
    """Log that layers are compiled where no flag says so, and for a run that is long enough why they are not."""
    if plan.machine.has_gpu or plan.compilation.reason in (ASKED, TOO_SHORT):
        return
    logger.info("layers: %s (%s)", "compiled" if plan.compilation.is_on else "not compiled", plan.compilation.reason)


def _said_processes(batch: GlobalBatch) -> str:
    if batch.sequence_parallel_size == 1:
        return f"{batch.num_processes} process" + "es" * (batch.num_processes != 1)
    return f"{counted(batch.num_groups, 'group')} of {batch.sequence_parallel_size} processes that share each block"


def _warn_of_warm_up(plan: RunConfig) -> None:
    if plan.schedule.warmup_steps >= plan.num_steps and plan.schedule.warmup_steps > 0:
        logger.warning(
            "--warmup_steps %d: the run has %s, so the learning rate ends at %.2e, on its way up to "
            "--learning_rate %.2e; use less, e.g. --warmup_steps 0.01 for 1 %% of the run",
            plan.schedule.warmup_steps,
            counted(plan.num_steps, "step"),
            plan.schedule.learning_rate(plan.num_steps),
            plan.schedule.peak,
        )


def _announce_memory(plan: RunConfig) -> None:
    needed, machine = footprint(plan.layout, has_gpu=plan.machine.has_gpu), plan.machine
    places = []
    if machine.gpu_bytes is not None:
        places.append(f"{format_bytes(needed.gpu_bytes)} of {format_bytes(machine.gpu_bytes)} on each GPU")
    if machine.host_bytes is not None:
        places.append(f"{format_bytes(needed.host_bytes)} of {format_bytes(machine.host_bytes)} in host memory")
    logger.info("planned: %s", ", ".join(places))


def _warn_of_disk(plan: RunConfig) -> None:
    kept = disk_usage(plan.arguments, plan.layout, num_tokens=plan.num_steps * plan.batch.tokens)
    existing = next(folder for folder in (plan.run_dir, *plan.run_dir.resolve().parents) if folder.is_dir())
    needed, free = kept.checkpoints_bytes + kept.exports_bytes, shutil.disk_usage(existing).free
    if needed > free:
        logger.warning(
            "--output_dir %s: has %s free, and checkpoints and exported models take up to %s; give another, or less "
            "of --save_total_limit",
            plan.run_dir,
            format_bytes(free),
            format_bytes(needed),
        )
