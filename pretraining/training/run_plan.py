"""What a run is: decided and checked before the processes join and anything is loaded."""

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from pretraining.cli.launchers import num_processes
from pretraining.cli.pretrain_arguments import PretrainArguments
from pretraining.corpus.manifest import MANIFEST_NAME
from pretraining.corpus.shards import sha256_of
from pretraining.corpus.store_source import Mixture
from pretraining.machine.flops import num_parameters
from pretraining.machine.memory import available_host_bytes
from pretraining.runs.checkpoints import checkpoint_step, checkpoint_to_resume, claim_run_folder
from pretraining.runs.run_record import RunIdentity, check_same_run, read_run_record
from pretraining.training.block_loader import BlockStream
from pretraining.training.block_order import BlockOrder
from pretraining.training.ds_config import choose_cpu_optimizer, load_ds_config
from pretraining.training.global_batch import GlobalBatch, plan_global_batch
from pretraining.training.model import load_model_config
from pretraining.training.optimizers import prepare_optimizer
from pretraining.training.preflight import GradientType, check_memory, check_tokenizer, choose_gradient_type
from pretraining.training.processes import check_num_processes, has_gpu, smallest_gpu_bytes
from pretraining.training.run_data import check_blocks, make_order
from pretraining.training.schedule import Schedule, check_same_until, make_schedule
from pretraining.training.sequence_parallel import check_sequence_parallel
from pretraining.training.training_arguments import Precision, choose_precision

NOT_THE_SHAPE = ("bos_token_id", "dtype", "architectures", "use_cache", "transformers_version")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPlan:
    """Everything that is known about a run before it starts."""

    arguments: PretrainArguments
    mixture: Mixture
    order: BlockOrder
    run_dir: Path
    checkpoint: Path | None
    ds_config: dict[str, Any]
    config: LlamaConfig
    batch: GlobalBatch
    num_steps: int
    schedule: Schedule
    precision: Precision
    gradient_type: GradientType

    def stream(self) -> BlockStream:
        """The blocks one after another, from the first."""
        return BlockStream(self.order)

    def epochs_by_source(self, num_blocks: int) -> dict[str, float]:
        """How often each source of a mixture was read after `num_blocks` blocks, as keys of the log."""
        if len(self.mixture.parts) == 1:
            return {}
        consumed = self.order.num_consumed(num_blocks)
        return {
            f"epoch/{part.source}": count / size
            for part, count, size in zip(self.mixture.parts, consumed, self.order.num_blocks, strict=True)
        }

    @property
    def predicts_alike(self) -> bool:
        """Whether the same number of tokens is predicted in every block: none is padding and none is masked."""
        splits = [part.store.manifest.splits["train"] for part in self.mixture.parts]
        return not self.arguments.data.mask_document_starts and not any(split.num_padding_tokens for split in splits)

    @property
    def last_stable_step(self) -> int | None:
        """The step of wsd whose checkpoint is kept, from which the run can be made longer."""
        return self.schedule.last_stable_step if self.schedule.shape == "wsd" else None


def plan_run(arguments: PretrainArguments, mixture: Mixture) -> RunPlan:
    """Check everything that can be checked without loading anything.

    Raises:
        UserError: for whatever would make the run fail or be another one than was asked for.
    """
    trainer = arguments.trainer
    for part in mixture.parts:
        check_tokenizer(part.store.folder, part.store.manifest)
    check_num_processes()
    run_dir = Path(trainer["output_dir"] or Path("runs") / _run_name(arguments.model.model))
    ds_config = load_ds_config(trainer["deepspeed"])
    config = load_model_config(arguments.model, mixture.origin)
    batch = _plan_batch(arguments, mixture, config)
    num_steps = _num_steps(arguments, batch, sum(mixture.num_blocks("train")))
    precision = choose_precision(trainer, has_gpu=has_gpu())
    gradient_type = choose_gradient_type(
        arguments.optimization,
        config,
        ds_config,
        precision=precision,
        bytes_per_gpu=smallest_gpu_bytes(),
        num_processes=num_processes(),
    )
    check_memory(
        gradient_type.needed,
        model=arguments.model.model,
        gpu_bytes=smallest_gpu_bytes(),
        num_processes=num_processes(),
        available_host_bytes=available_host_bytes(),
    )
    check_blocks(mixture, batch, evaluates=trainer["eval_strategy"] != "no")
    data_seed = trainer.get("data_seed")
    plan = RunPlan(
        arguments=arguments,
        mixture=mixture,
        order=make_order(mixture, seed=trainer["seed"] if data_seed is None else data_seed),
        run_dir=run_dir,
        checkpoint=checkpoint_to_resume(run_dir, trainer.get("resume_from_checkpoint"), num_processes=num_processes()),
        ds_config=ds_config,
        config=config,
        batch=batch,
        num_steps=num_steps,
        schedule=make_schedule(arguments, num_steps=num_steps),
        precision=precision,
        gradient_type=gradient_type,
    )
    _check_warm_up(plan)
    if plan.checkpoint is not None:
        _check_goes_on(plan, plan.checkpoint)
    claim_run_folder(run_dir, plan.checkpoint)
    prepare_optimizer(arguments.optimization.optim, ds_config)
    choose_cpu_optimizer(ds_config, has_gpu=has_gpu())
    ds_config["data_types"]["grad_accum_dtype"] = plan.gradient_type.name
    return plan


def run_identity(plan: RunPlan) -> RunIdentity:
    """What makes it this run and no other."""
    config = plan.config.to_dict()
    # What a Trainer fills in by itself, and what changes with the library, is not the model's shape.
    shape = {name: value for name, value in config.items() if name not in NOT_THE_SHAPE}
    parts = zip(plan.mixture.parts, plan.order.blocks_per_window, strict=True)
    return RunIdentity(
        data=[
            {"manifest_sha256": sha256_of(part.store.folder / MANIFEST_NAME), "blocks_per_1000": share}
            for part, share in parts
        ],
        model_config=shape,
        global_batch_tokens=plan.batch.tokens,
        order_seed=plan.order.seed,
        isolate_documents=plan.arguments.data.isolate_documents,
        mask_document_starts=plan.arguments.data.mask_document_starts,
        optimizer=plan.arguments.optimization.optim,
        weight_decay_on_norms=plan.arguments.optimization.weight_decay_on_norms,
    )


def announce(plan: RunPlan) -> None:
    """Say what is about to run."""
    batch, schedule = plan.batch, plan.schedule
    num_blocks = plan.num_steps * batch.blocks
    logger.info(
        f"model: {plan.arguments.model.model}, {num_parameters(plan.config):,} parameters, blocks of "
        f"{batch.block_length:,} tokens, {plan.precision}"
    )
    logger.info(
        f"step: {batch.tokens:,} tokens = {batch.micro_batch_blocks} blocks x {batch.gradient_accumulation_steps} "
        f"micro steps x {_said_processes(batch)}, ZeRO-3, gradients added up in {plan.gradient_type.name} "
        f"({plan.gradient_type.reason})"
    )
    logger.info(
        f"run: {plan.num_steps:,} steps, {plan.num_steps * batch.tokens:,} tokens, "
        f"{num_blocks / sum(plan.order.num_blocks):.2f} epochs over {sum(plan.order.num_blocks):,} blocks, into "
        f"{plan.run_dir}"
    )
    logger.info(
        f"learning rate: {schedule.learning_rate(1):.2e} at step 1, {schedule.peak:.2e} at step "
        f"{max(1, schedule.warmup_steps):,}, {schedule.shape} to {schedule.learning_rate(plan.num_steps):.2e}"
    )
    for part, share in zip(plan.mixture.parts, plan.order.blocks_per_window, strict=True):
        if part.source is not None and len(plan.mixture.parts) > 1:
            epochs = plan.epochs_by_source(num_blocks)[f"epoch/{part.source}"]
            logger.info(f"source {part.source}: {share} of 1,000 blocks, {epochs:.2f} epochs of {part.store.name}")
    if plan.checkpoint is not None:
        logger.info("resuming from %s", plan.checkpoint)


def _said_processes(batch: GlobalBatch) -> str:
    if batch.sequence_parallel_size == 1:
        return f"{batch.num_processes} processes"
    return f"{batch.num_groups} groups of {batch.sequence_parallel_size} processes that share each block"


def _run_name(model: str) -> str:
    """The name of a run folder: the preset's, the repository's, or that of the folder or file of a config."""
    path = Path(model)
    return path.resolve().parent.name if path.name == "config.json" else path.name.removesuffix(".json")


def _plan_batch(arguments: PretrainArguments, mixture: Mixture, config: LlamaConfig) -> GlobalBatch:
    size, block_length = arguments.model.sequence_parallel_size, mixture.origin.block_length
    check_sequence_parallel(size, config, block_length=block_length, num_processes=num_processes())
    micro_step = GlobalBatch(
        block_length=block_length,
        micro_batch_blocks=arguments.trainer["per_device_train_batch_size"],
        gradient_accumulation_steps=1,
        num_processes=num_processes(),
        sequence_parallel_size=size,
    )
    return plan_global_batch(
        micro_step,
        global_batch_tokens=arguments.data.global_batch_tokens,
        gradient_accumulation_steps=arguments.trainer.get("gradient_accumulation_steps"),
    )


def _num_steps(arguments: PretrainArguments, batch: GlobalBatch, num_blocks: int) -> int:
    """Optimizer steps of the whole run: as asked for, or as many as it takes for the tokens or fit into the epochs."""
    if arguments.trainer.get("max_steps", -1) > 0:
        return arguments.trainer["max_steps"]
    if arguments.data.max_tokens is not None:
        return math.ceil(arguments.data.max_tokens / batch.tokens)
    return max(1, math.floor(arguments.trainer["num_train_epochs"] * num_blocks / batch.blocks + 1e-6))


def _check_warm_up(plan: RunPlan) -> None:
    if plan.schedule.warmup_steps >= plan.num_steps and plan.schedule.warmup_steps > 0:
        logger.warning(
            "--warmup_steps %d: the run has %d steps, so the learning rate never goes down; give less, such as "
            "--warmup_steps 0.01 for 1 %% of the run",
            plan.schedule.warmup_steps,
            plan.num_steps,
        )


def _check_goes_on(plan: RunPlan, checkpoint: Path) -> None:
    """Refuse to go on with another run, or with a schedule that would have been another one until here."""
    check_same_run(checkpoint.parent, run_identity(plan))
    recorded = read_run_record(checkpoint.parent)["schedule"]
    step = checkpoint_step(checkpoint)
    if step is not None and recorded != asdict(plan.schedule):
        check_same_until(step, recorded, plan.schedule, place=f"--resume_from_checkpoint {checkpoint}")
