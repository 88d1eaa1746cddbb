"""The story of a pretraining run, from checked flags to the exported model.

It stands here and not in pretrain.py because everything it needs imports torch, which pretrain.py loads only when the
flags are right.
"""

import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.cli.program import exit_process
from pretraining.data.mixture import Mixture
from pretraining.errors import USER_ERROR_EXIT_CODE
from pretraining.planning.flops import flops_per_token, num_parameters
from pretraining.runs.run_folder import METRICS_NAME, TOKENIZER_DIR_NAME, quarantine_unusable
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.runs.tracking.progress_bar import RunDisplay
from pretraining.runs.tracking.reporters import Reporters, TensorBoardResume, TrackedRun, last_reported_step
from pretraining.system.gpus import peak_flops_per_second
from pretraining.system.supervision import this_restart
from pretraining.training.callbacks.anomalies import AnomalyCallback
from pretraining.training.callbacks.checkpoint_rotation import CheckpointRotation
from pretraining.training.callbacks.deepspeed_record import DeepSpeedConfigRecorder
from pretraining.training.callbacks.export import ExportCallback, set_aside_exports
from pretraining.training.callbacks.hub_push import HubPushCallback
from pretraining.training.callbacks.report import ReportCallback
from pretraining.training.callbacks.samples import SampleCallback, encode_prompts
from pretraining.training.callbacks.step_timer import StepTimer, make_cuda_event
from pretraining.training.config.recording import record_start
from pretraining.training.config.resume import lock_and_verify
from pretraining.training.config.run_config import RunConfig, resolve_run_config
from pretraining.training.config.run_identity import claim_output_dir, matches_recorded_run
from pretraining.training.config.startup_log import log_run_config
from pretraining.training.config.trainer_arguments import make_training_arguments
from pretraining.training.data.dataset import BlockFields, UnusableBlockError
from pretraining.training.data.loader import SharedMemoryError
from pretraining.training.data.splits import open_training_data
from pretraining.training.distributed.collectives import run_on_main
from pretraining.training.distributed.process_group import (
    has_gpu,
    init_process_group,
    local_peers,
    shutdown_process_group,
)
from pretraining.training.dry_run.micro_batch import with_largest_micro_batch
from pretraining.training.dry_run.profile import print_profile, profile_arguments
from pretraining.training.finish import exit_stopped, finish
from pretraining.training.metrics.throughput import StepWork, ThroughputMeter
from pretraining.training.model.build import build_model
from pretraining.training.model.compile import compile_layers, set_zero_leaf_layers
from pretraining.training.model.fp8 import convert_to_fp8
from pretraining.training.model.sequence_parallel import join_sequence_group, share_attention
from pretraining.training.model.tiling import tile_layers, tile_loss
from pretraining.training.model.tokenizer import tokenizer_for_model
from pretraining.training.stopping.callback import StopCallback
from pretraining.training.stopping.hang_watchdog import HangWatchdog
from pretraining.training.stopping.orphan_guard import OrphanGuard, end_workers
from pretraining.training.stopping.request import Phase, StopRequest
from pretraining.training.trainer.summary import RunSummary
from pretraining.training.trainer.trainer import PretrainingTrainer, RunStart

logger = logging.getLogger(__name__)


def pretrain(arguments: PretrainArguments, mixture: Mixture) -> None:
    """Train, evaluate, export the model."""
    quiet_libraries()
    request = StopRequest()
    lifeline = OrphanGuard(request)
    lifeline.start()
    arguments = resolve_auto_micro_batch(arguments, mixture)
    plan = resolve_run_config(profile_arguments(arguments, mixture), mixture)
    claim_output_dir(plan)
    log_run_config(plan)
    init_process_group(timeout_seconds=arguments.trainer["ddp_timeout"])
    lifeline.watch(local_peers())
    start = lock_and_verify(plan.start, plan.run_dir, plan.resume)
    plan = replace(plan, start=start)
    trainer, report = make_trainer(plan, request), ReportCallback(plan)
    trainer.add_callback(report)
    run_on_main(lambda: start_run_folder(plan, trainer))
    try:
        trainer.train(resume_from_checkpoint=None if start.checkpoint is None else str(start.checkpoint))
        exit_if_profiled(trainer, arguments, mixture)
        if request.is_agreed:
            exit_stopped(trainer, report)
        finish(trainer, report)
    except (UnusableBlockError, SharedMemoryError) as error:  # of this process alone, for which the others would wait
        logger.error(error)
        lifeline.end_others()
        end_workers()
        exit_process(USER_ERROR_EXIT_CODE)
    request.phase = Phase.LEAVING
    shutdown_process_group()


def resolve_auto_micro_batch(arguments: PretrainArguments, mixture: Mixture) -> PretrainArguments:
    """Replace `--per_device_train_batch_size auto` by the largest micro batch that fits, found by trials."""
    return with_largest_micro_batch(arguments, mixture) if arguments.finds_micro_batch else arguments


def exit_if_profiled(trainer: PretrainingTrainer, arguments: PretrainArguments, mixture: Mixture) -> None:
    """End a run of --profile_plan after its steps, when it has printed what they took."""
    if arguments.plan.profile_plan:
        print_profile(trainer, arguments, mixture)
        shutdown_process_group()


def quiet_libraries() -> None:
    """Silence what libraries warn about on every rank and no user of this suite can act on."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it compares our accumulation with a default it never uses
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def make_trainer(plan: RunConfig, request: StopRequest) -> PretrainingTrainer:
    """Blocks, weights and the Trainer; the processes must have joined."""
    tokenizer = _tokenizer(plan)
    num_positions = plan.config.max_position_embeddings
    prompts = encode_prompts(plan.arguments.observability, tokenizer, num_positions=num_positions)
    # The arguments come before the model: partitioning at construction looks for them.
    arguments = make_training_arguments(
        plan.arguments.trainer,
        run_dir=plan.run_dir,
        ds_config=plan.ds_config,
        batch=plan.batch,
        num_steps=plan.num_steps,
        precision=plan.precision,
    )
    fields = BlockFields(plan.arguments.data.document_masking, plan.arguments.data.ignore_first_token)
    with arguments.main_process_first():  # one process turns the Parquet shards into Arrow, the others find it done
        data = open_training_data(plan.mixture, plan.stream(), fields)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(plan.run_dir / "tensorboard"))
    if data.validation is None:
        arguments.eval_strategy, arguments.eval_on_start = "no", False
    checkpoint = plan.start.checkpoint
    goes_on = (
        checkpoint is not None and checkpoint.parent.resolve() == plan.run_dir.resolve() and matches_recorded_run(plan)
    )
    tracked_run = TrackedRun(arguments, plan.run_dir, resumes=goes_on)
    trainer = PretrainingTrainer(
        plan,
        data,
        model=make_model(plan, seed=arguments.seed),
        args=arguments,
        processing_class=tokenizer,
        meter=ThroughputMeter(step_work(plan)),
    )
    # Their log can be a gigabyte, and is read for trackers alone.
    told_until = last_reported_step(plan.run_dir) if goes_on and tracked_run.has_trackers else 0
    trainer.reporters = Reporters(trainer.callback_handler.callbacks, reported_until=told_until)
    begins_with = None if checkpoint is None else checkpoint.parent / METRICS_NAME
    metrics_log = MetricsLog(plan.run_dir, parent_log=begins_with, restart=this_restart(), start=start_event(plan))
    pushes = HubPushCallback(trainer, metrics_log)
    for callback in (
        RunStart(trainer),
        DeepSpeedConfigRecorder(trainer),
        tracked_run,
        CheckpointRotation(plan, trainer, metrics_log, after_save=pushes.put_checkpoint),
        AnomalyCallback(trainer, metrics_log),
        StepTimer(trainer, make_event=make_cuda_event if has_gpu() else None),
        ExportCallback(trainer),
        SampleCallback(trainer, metrics_log, prompts),
        metrics_log,
        TensorBoardResume(plan.run_dir, trainer.callback_handler.callbacks, step=plan.start.step),
        RunDisplay(),
        StopCallback(trainer, metrics_log, request),
        pushes,
        RunSummary(trainer.figures, metrics_log),
    ):
        trainer.add_callback(callback)
    minutes = plan.arguments.durability.hang_timeout_minutes
    if minutes:
        trainer.add_callback(HangWatchdog(plan.run_dir, minutes=minutes, is_writing=lambda: trainer.saver.is_writing))
    return trainer


def step_work(plan: RunConfig) -> StepWork:
    """What a step is, for whoever measures its speed."""
    length = plan.batch.block_length
    return StepWork(
        tokens=plan.batch.tokens,
        blocks=plan.batch.blocks,
        num_gpus=plan.batch.num_processes,
        flops_per_token=flops_per_token(plan.config, block_length=length),
        causal_flops_per_token=flops_per_token(plan.config, block_length=length, is_causal=True),
        peak_flops_per_second=peak_flops_per_second(torch.cuda.get_device_name()) if has_gpu() else None,
    )


def start_event(plan: RunConfig) -> dict[str, Any]:
    """This start as an event of the log."""
    return {
        "resumed_from": None if plan.start.checkpoint is None else str(plan.start.checkpoint),
        "num_processes": plan.batch.num_processes,
        "num_parameters": num_parameters(plan.config),
    }


def make_model(plan: RunConfig, *, seed: int) -> PreTrainedModel:
    """The weights that a run begins with, computed as the flags say: in tiles, with shared blocks, in fp8."""
    flags, share = plan.arguments.model, plan.batch.sequence_parallel_size
    begins_with = plan.arguments.weights if plan.start.checkpoint is None else None
    weights = None if begins_with is None else Path(begins_with)
    model = build_model(
        plan.config, attention_implementation=flags.attention_implementation, seed=seed, weights=weights
    )
    set_zero_leaf_layers(model)
    if flags.loss_tiles is not None:
        tile_loss(model, num_tiles=flags.loss_tiles)
    if flags.mlp_tiles is not None:
        tile_layers(model, num_tiles=flags.mlp_tiles)
    if share > 1:
        isolated = plan.arguments.data.document_masking
        group = join_sequence_group(share, timeout_seconds=plan.arguments.trainer["ddp_timeout"])
        share_attention(flags.attention_implementation, group, within_documents=isolated)
    if flags.fp8:
        convert_to_fp8(model)
    if flags.compile_layers:
        compile_layers(model)
    return model


def start_run_folder(plan: RunConfig, trainer: PretrainingTrainer) -> None:
    """Make way, and write what the run is before its first step: what outlives a crash."""
    quarantine_unusable(plan.run_dir, step=plan.start.step)
    if not matches_recorded_run(plan):
        set_aside_exports(plan.run_dir, step=plan.start.step)
    trainer.processing_class.save_pretrained(plan.run_dir / TOKENIZER_DIR_NAME)
    record_start(plan, trainer.args)


def _tokenizer(plan: RunConfig) -> PreTrainedTokenizerFast:
    store = plan.mixture.first
    return tokenizer_for_model(store.folder, store.manifest.origin, max_length=plan.config.max_position_embeddings)
