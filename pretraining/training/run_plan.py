"""What a run is: decided and checked before the processes join and anything is loaded."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from pretraining.cli.arguments import DataArguments, ModelArguments
from pretraining.cli.errors import UserError
from pretraining.cli.launchers import num_processes
from pretraining.corpus.manifest import MANIFEST_NAME, Manifest
from pretraining.corpus.shards import sha256_of
from pretraining.corpus.store_source import StoreSource
from pretraining.machine.flops import num_parameters
from pretraining.machine.memory import available_host_bytes, model_state_bytes
from pretraining.runs.checkpoints import checkpoint_to_resume, claim_run_folder
from pretraining.runs.run_record import RunIdentity, check_same_run
from pretraining.training.ds_config import choose_cpu_optimizer, load_ds_config, offloads
from pretraining.training.global_batch import GlobalBatch, plan_global_batch
from pretraining.training.model import load_model_config
from pretraining.training.preflight import check_memory, check_schedule, check_tokenizer
from pretraining.training.processes import check_num_processes, has_gpu, smallest_gpu_bytes
from pretraining.training.trainer import Precision, choose_precision

NOT_THE_SHAPE = ("bos_token_id", "dtype", "architectures", "use_cache", "transformers_version")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPlan:
    """Everything that is known about a run before it starts."""

    model_arguments: ModelArguments
    trainer_flags: dict[str, Any]
    source: StoreSource
    run_dir: Path
    checkpoint: Path | None
    ds_config: dict[str, Any]
    config: LlamaConfig
    batch: GlobalBatch
    precision: Precision

    @property
    def store(self) -> Path:
        """The folder of the block store."""
        return self.source.folder

    @property
    def manifest(self) -> Manifest:
        """What is in the block store."""
        return self.source.manifest

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.trainer_flags.get("max_steps", -1) > 0:
            return self.trainer_flags["max_steps"]
        steps_per_epoch = self.manifest.splits["train"].num_blocks // self.batch.blocks
        return math.ceil(self.trainer_flags["num_train_epochs"] * steps_per_epoch)


def plan_run(
    model_arguments: ModelArguments, data_arguments: DataArguments, trainer_flags: dict[str, Any], source: StoreSource
) -> RunPlan:
    """Check everything that can be checked without loading anything.

    Raises:
        UserError: for whatever would make the run fail or be another one than was asked for.
    """
    manifest = source.manifest
    check_tokenizer(source.folder, manifest)
    check_num_processes()
    run_dir = Path(trainer_flags["output_dir"] or Path("runs") / _run_name(model_arguments.model))
    resume_from = trainer_flags.get("resume_from_checkpoint")
    plan = RunPlan(
        model_arguments=model_arguments,
        trainer_flags=trainer_flags,
        source=source,
        run_dir=run_dir,
        checkpoint=checkpoint_to_resume(run_dir, resume_from, num_processes=num_processes()),
        ds_config=load_ds_config(trainer_flags["deepspeed"]),
        config=load_model_config(model_arguments, manifest.origin),
        batch=plan_global_batch(
            global_batch_tokens=data_arguments.global_batch_tokens,
            gradient_accumulation_steps=trainer_flags.get("gradient_accumulation_steps"),
            block_length=manifest.origin.block_length,
            micro_batch_blocks=trainer_flags["per_device_train_batch_size"],
            num_processes=num_processes(),
        ),
        precision=choose_precision(trainer_flags, has_gpu=has_gpu()),
    )
    _check_memory(plan)
    _check_blocks(plan)
    check_schedule(trainer_flags, num_steps=plan.num_steps)
    if plan.checkpoint is not None:
        check_same_run(plan.checkpoint.parent, run_identity(plan))
    claim_run_folder(run_dir, plan.checkpoint)
    choose_cpu_optimizer(plan.ds_config, has_gpu=has_gpu())
    return plan


def run_identity(plan: RunPlan) -> RunIdentity:
    """What makes it this run and no other."""
    config = plan.config.to_dict()
    # What a Trainer fills in by itself, and what changes with the library, is not the model's shape.
    shape = {name: value for name, value in config.items() if name not in NOT_THE_SHAPE}
    return RunIdentity(
        manifest_sha256=sha256_of(plan.store / MANIFEST_NAME),
        model_config=shape,
        global_batch_tokens=plan.batch.tokens,
        seed=plan.trainer_flags["seed"],
    )


def _run_name(model: str) -> str:
    """The name of a run folder: the preset's, the repository's, or that of the folder or file of a config."""
    path = Path(model)
    return path.resolve().parent.name if path.name == "config.json" else path.name.removesuffix(".json")


def announce(plan: RunPlan) -> None:
    """Say what is about to run."""
    config, batch, train = plan.config, plan.batch, plan.manifest.splits["train"]
    logger.info(
        "model: %s, %s parameters, blocks of %s tokens, %s",
        plan.model_arguments.model,
        f"{num_parameters(config):,}",
        f"{batch.block_length:,}",
        plan.precision,
    )
    logger.info(
        "step: %s tokens = %d blocks x %d micro steps x %d processes, ZeRO-3",
        f"{batch.tokens:,}",
        batch.micro_batch_blocks,
        batch.gradient_accumulation_steps,
        batch.num_processes,
    )
    num_tokens = plan.num_steps * batch.tokens
    epochs = plan.num_steps * batch.blocks / train.num_blocks
    logger.info(
        "run: %s steps, %s tokens, %.2f epochs over %s blocks, into %s",
        f"{plan.num_steps:,}",
        f"{num_tokens:,}",
        epochs,
        f"{train.num_blocks:,}",
        plan.run_dir,
    )
    if plan.checkpoint is not None:
        logger.info("resuming from %s", plan.checkpoint)


def _check_blocks(plan: RunPlan) -> None:
    num_blocks = plan.manifest.splits["train"].num_blocks
    if num_blocks == 0:
        raise UserError(
            f"--dataset {plan.store}: train has no block of {plan.batch.block_length:,} tokens; preprocess more text, "
            "or with a smaller --block_length"
        )
    if num_blocks < plan.batch.blocks:
        per_micro_step = plan.batch.micro_batch_blocks * plan.batch.num_processes
        largest = num_blocks // per_micro_step * per_micro_step * plan.batch.block_length
        raise UserError(
            f"--global_batch_tokens {plan.batch.tokens}: a step of {plan.batch.blocks:,} blocks is more than the "
            f"{num_blocks:,} of an epoch; give {largest} or less, or preprocess more text"
        )
    evaluates = plan.trainer_flags["eval_strategy"] != "no"
    if evaluates and plan.manifest.splits["validation"].num_blocks == 0:
        logger.warning(
            "--dataset %s: validation has no block, so there is no validation while training; preprocess with a "
            "smaller --block_length or another --split to have one",
            plan.store,
        )


def _check_memory(plan: RunPlan) -> None:
    needed = model_state_bytes(
        num_parameters(plan.config),
        half_precision=plan.precision != "fp32",
        offload_optimizer=offloads(plan.ds_config, "optimizer"),
        offload_parameters=offloads(plan.ds_config, "param"),
    )
    check_memory(
        needed,
        model=plan.model_arguments.model,
        gpu_bytes=smallest_gpu_bytes(),
        num_processes=plan.batch.num_processes,
        available_host_bytes=available_host_bytes(),
    )
