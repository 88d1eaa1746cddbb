"""The story of a pretraining run, from checked flags to the exported model.

It stands here and not in pretrain.py because everything it needs imports torch, which pretrain.py loads only when the
flags are right.
"""

import logging
import os
import warnings
from typing import Any

import torch
from transformers import default_data_collator
from transformers.utils import logging as transformers_logging

from pretraining.cli.arguments import DataArguments, ModelArguments
from pretraining.corpus.store_source import StoreSource
from pretraining.machine.flops import flops_per_token, num_parameters
from pretraining.machine.gpus import peak_flops_per_second
from pretraining.machine.throughput import ThroughputMeter
from pretraining.runs.checkpoints import MODEL_DIR_NAME, TOKENIZER_DIR_NAME
from pretraining.runs.export import export_model
from pretraining.runs.metrics import MetricsLog
from pretraining.runs.run_record import RunRecord
from pretraining.training.block_dataset import open_split
from pretraining.training.model import build_model
from pretraining.training.processes import has_gpu, join_processes, leave_processes
from pretraining.training.run_plan import RunPlan, announce, plan_run, run_identity
from pretraining.training.tokenizer import tokenizer_for_model
from pretraining.training.trainer import PretrainingTrainer, make_training_arguments

logger = logging.getLogger(__name__)


def pretrain(
    model_arguments: ModelArguments, data_arguments: DataArguments, trainer_flags: dict[str, Any], source: StoreSource
) -> None:
    """Train from random weights, evaluate, export the model."""
    quiet_libraries()
    plan = plan_run(model_arguments, data_arguments, trainer_flags, source)
    announce(plan)
    join_processes(timeout_seconds=trainer_flags["ddp_timeout"])
    trainer = make_trainer(plan)
    if trainer.is_world_process_zero():
        start_run_folder(plan, trainer)
    trainer.train(resume_from_checkpoint=None if plan.checkpoint is None else str(plan.checkpoint))
    evaluate_at_end(trainer)
    export_model(trainer, plan.run_dir / MODEL_DIR_NAME)
    logger.info("run folder: %s (metrics.jsonl, tensorboard/, checkpoints)", plan.run_dir)
    logger.info("exported model: %s", plan.run_dir / MODEL_DIR_NAME)
    logger.info('next: python3 generate.py --model %s --prompt "I wanna go"', plan.run_dir)
    leave_processes()


def quiet_libraries() -> None:
    """Silence what libraries warn about on every rank and no user of this suite can act on."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it compares our accumulation with a default it never uses
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def make_trainer(plan: RunPlan) -> PretrainingTrainer:
    """Blocks, fresh weights and the Trainer; the processes must have joined."""
    # The arguments come before the model: partitioning at construction looks for them.
    arguments = make_training_arguments(
        plan.trainer_flags,
        run_dir=plan.run_dir,
        ds_config=plan.ds_config,
        batch=plan.batch,
        precision=plan.precision,
        has_gpu=has_gpu(),
    )
    with arguments.main_process_first():  # one process turns the Parquet shards into Arrow, the others find it done
        train_blocks = open_split(plan.store, plan.manifest, "train")
        validation_blocks = open_split(plan.store, plan.manifest, "validation")
        test_blocks = open_split(plan.store, plan.manifest, "test")  # now: a damaged shard must not show at the end
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(plan.run_dir / "tensorboard"))
    if validation_blocks is None:
        arguments.eval_strategy = "no"
    return PretrainingTrainer(
        model=build_model(
            plan.config, attention_implementation=plan.model_arguments.attention_implementation, seed=arguments.seed
        ),
        args=arguments,
        train_dataset=train_blocks,
        eval_dataset=validation_blocks,
        test_dataset=test_blocks,
        data_collator=default_data_collator,
        processing_class=tokenizer_for_model(plan.store, plan.manifest, max_length=plan.config.max_position_embeddings),
        metrics_log=MetricsLog(plan.run_dir),
        meter=ThroughputMeter(
            tokens_per_step=plan.batch.tokens,
            num_gpus=plan.batch.num_processes,
            flops_per_token=flops_per_token(plan.config, block_length=plan.batch.block_length),
            peak_flops_per_second=peak_flops_per_second(torch.cuda.get_device_name()) if has_gpu() else None,
        ),
    )


def start_run_folder(plan: RunPlan, trainer: PretrainingTrainer) -> None:
    """Write what the run is before its first step: run.json and the tokenizer, which outlive a crash."""
    trainer.processing_class.save_pretrained(plan.run_dir / TOKENIZER_DIR_NAME)
    RunRecord(
        identity=run_identity(plan),
        arguments={
            **vars(plan.model_arguments),
            "dataset": plan.source.name,
            "dataset_commit": plan.source.commit,
            **trainer.args.to_dict(),
        },
        ds_config=plan.ds_config,
        num_parameters=num_parameters(plan.config),
        hardware={
            "num_processes": plan.batch.num_processes,
            "gpu": torch.cuda.get_device_name() if has_gpu() else None,
            "num_cpu_cores": os.cpu_count(),
        },
    ).write(plan.run_dir)


def evaluate_at_end(trainer: PretrainingTrainer) -> None:
    """Loss on validation, unless it was just measured, and on test, which nothing has looked at before."""
    measured_at = [record["step"] for record in trainer.state.log_history if "eval_loss" in record]
    if trainer.eval_dataset is not None and trainer.state.global_step not in measured_at:
        trainer.evaluate()
    if trainer.test_dataset is not None:
        trainer.evaluate(trainer.test_dataset, metric_key_prefix="test")
