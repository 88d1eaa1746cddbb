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
from pretraining.corpus.manifest import Manifest, read_manifest
from pretraining.machine.flops import num_parameters
from pretraining.machine.gpus import visible_gpus
from pretraining.machine.memory import available_host_bytes, model_state_bytes
from pretraining.runs.checkpoints import check_run_folder
from pretraining.training.ds_config import load_ds_config, offloads
from pretraining.training.global_batch import GlobalBatch, plan_global_batch
from pretraining.training.model import load_model_config
from pretraining.training.preflight import check_memory, check_tokenizer, warn_about_schedule
from pretraining.training.processes import check_num_processes, has_gpu
from pretraining.training.trainer import Precision, choose_precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPlan:
    """Everything that is known about a run before it starts."""

    model_arguments: ModelArguments
    trainer_flags: dict[str, Any]
    store: Path
    manifest: Manifest
    run_dir: Path
    checkpoint: Path | None
    ds_config: dict[str, Any]
    config: LlamaConfig
    batch: GlobalBatch
    precision: Precision

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.trainer_flags.get("max_steps", -1) > 0:
            return self.trainer_flags["max_steps"]
        steps_per_epoch = -(-self.manifest.splits["train"].num_blocks // self.batch.blocks)
        return math.ceil(self.trainer_flags["num_train_epochs"] * steps_per_epoch)


def plan_run(model_arguments: ModelArguments, data_arguments: DataArguments, trainer_flags: dict[str, Any]) -> RunPlan:
    """Check everything that can be checked without loading anything.

    Raises:
        UserError: for whatever would make the run fail or be another one than was asked for.
    """
    store = Path(data_arguments.dataset)
    manifest = read_manifest(store, flag="--dataset")
    check_tokenizer(store, manifest)
    check_num_processes()
    run_dir = Path(trainer_flags["output_dir"] or f"runs/{Path(model_arguments.model).stem}")
    plan = RunPlan(
        model_arguments=model_arguments,
        trainer_flags=trainer_flags,
        store=store,
        manifest=manifest,
        run_dir=run_dir,
        checkpoint=check_run_folder(run_dir, trainer_flags.get("resume_from_checkpoint")),
        ds_config=load_ds_config(trainer_flags["deepspeed"], has_gpu=has_gpu()),
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
    _check_blocks(plan)
    _check_memory(plan)
    return plan


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
    warn_about_schedule(num_steps=plan.num_steps, warmup_steps=plan.trainer_flags["warmup_steps"])


def _check_blocks(plan: RunPlan) -> None:
    if plan.manifest.splits["train"].num_blocks == 0:
        raise UserError(
            f"--dataset {plan.store}: train has no block of {plan.batch.block_length:,} tokens; preprocess more text, "
            "or with a smaller --block_length"
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
        gpus=visible_gpus() if has_gpu() else [],
        num_processes=plan.batch.num_processes,
        available_host_bytes=available_host_bytes(),
    )
