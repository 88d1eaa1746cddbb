"""Build what a run trains with: the model, the trainer, and its callbacks in their order."""

import os
from functools import partial

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from pretraining.planning.flops import flops_per_token, num_parameters
from pretraining.planning.layout import DOCUMENTS
from pretraining.runs.run_folder import METRICS_NAME
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.runs.tracking.progress_bar import RunDisplay
from pretraining.runs.tracking.reporters import Reporters, TensorBoardResume, TrackedRun, last_reported_step
from pretraining.system.gpus import peak_flops_per_second
from pretraining.system.supervision import this_restart
from pretraining.training.callbacks.anomalies import AnomalyCallback
from pretraining.training.callbacks.checkpoint_rotation import CheckpointRotation
from pretraining.training.callbacks.export import ExportCallback
from pretraining.training.callbacks.hub_push import HubPushCallback
from pretraining.training.callbacks.profiler import Profiler
from pretraining.training.callbacks.report import ReportCallback
from pretraining.training.callbacks.samples import Prompt, SampleCallback, encode_prompts
from pretraining.training.callbacks.task_scores import TaskScorer
from pretraining.training.callbacks.timing import RunStart, RunSummary, StepTimer
from pretraining.training.config.run_config import RunConfig
from pretraining.training.config.run_identity import matches_recorded_run
from pretraining.training.config.trainer_arguments import make_training_arguments
from pretraining.training.data.dataset import BlockFields
from pretraining.training.data.splits import open_training_data
from pretraining.training.distributed.process_group import has_gpu
from pretraining.training.dry_run.profile import AllocatedStates
from pretraining.training.metrics.throughput import StepWork, ThroughputMeter
from pretraining.training.model.build import build_model
from pretraining.training.model.compile import compile_layers, set_zero_leaf_layers
from pretraining.training.model.document_attention import use_document_attention
from pretraining.training.model.fp8 import convert_to_fp8
from pretraining.training.model.sequence_parallel import join_sequence_group, share_attention
from pretraining.training.model.tiling import tile_layers, tile_loss
from pretraining.training.model.tokenizer import tokenizer_for_model
from pretraining.training.model.weights import ParentWeights
from pretraining.training.stopping.callback import StopCallback
from pretraining.training.stopping.hang_watchdog import HangWatchdog
from pretraining.training.stopping.request import StopRequest
from pretraining.training.stopping.target_loss import TargetLoss
from pretraining.training.tasks.encoding import encode_tasks
from pretraining.training.tasks.files import read_tasks
from pretraining.training.trainer.trainer import PretrainingTrainer

# The order in which callbacks are called at each event, after the Trainer's own and StepMetrics; with the reasons.
ORDER: tuple[type[TrainerCallback], ...] = (
    RunStart,  # first: it checks the engine that all others use, and starts the clock
    TrackedRun,  # stores the ids of the trackers' runs before anything can fail
    CheckpointRotation,  # before all that asks for an evaluation or a save: it sets the Trainer's intervals
    AnomalyCallback,  # after the Trainer's own: a rollback cancels the log, evaluation and save that they asked for
    StepTimer,  # right after AnomalyCallback, which waits for the end of the step
    Profiler,  # right after StepTimer: what others do at the end of a step is not in its trace
    TargetLoss,  # before whatever does more after the last step, which it can make of any step
    ExportCallback,  # after AnomalyCallback, which may roll the step back
    SampleCallback,  # likewise; before the save of the step, so that a resumed run has its samples once
    MetricsLog,
    TensorBoardResume,  # after MetricsLog, which drops the records of steps that are repeated
    RunDisplay,
    StopCallback,  # after whatever asks for an evaluation or a save: a stop turns the evaluation into a pending one
    HubPushCallback,  # after CheckpointRotation, which waits for the last checkpoint
    RunSummary,
    HangWatchdog,
    ReportCallback,
    AllocatedStates,  # of --profile_plan; nothing depends on it
)


def make_trainer(run: RunConfig, request: StopRequest) -> PretrainingTrainer:
    """The data, the model and the trainer with its callbacks; the process group must exist."""
    store, arguments = run.mixture.first, run.arguments
    max_length = run.config.max_position_embeddings
    tokenizer = tokenizer_for_model(store.folder, store.manifest.origin, max_length=max_length)
    prompts = encode_prompts(arguments.observability, tokenizer, num_positions=max_length)
    tasks = read_tasks(arguments.observability.eval_tasks, flag="--eval_tasks")
    task_requests = encode_tasks(tasks, tokenizer, num_positions=max_length, flag="--eval_tasks")
    # Before the model, which is partitioned as it is created if these exist.
    training_arguments = make_training_arguments(
        arguments.trainer,
        run_dir=run.run_dir,
        ds_config=run.ds_config,
        batch=run.batch,
        num_steps=run.num_steps,
        precision=run.precision,
    )
    fields = BlockFields(arguments.data.document_masking, arguments.data.ignore_first_token)
    with training_arguments.main_process_first():  # one process converts Parquet to Arrow, the others reuse that
        data = open_training_data(run.mixture, run.stream(), fields)
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.run_dir / "tensorboard"))
    if data.validation is None:
        training_arguments.eval_strategy, training_arguments.eval_on_start = "no", False
    tracked_run = TrackedRun(training_arguments, run.run_dir, resumes=_resumes_same_run(run))
    trainer = PretrainingTrainer(
        run,
        data,
        model=make_model(run, training_arguments),
        args=training_arguments,
        processing_class=tokenizer,
        meter=ThroughputMeter(step_work(run)),
    )
    trainer.score_tasks = TaskScorer(trainer, task_requests).score
    # Only trackers need the last reported step: it takes reading a log of up to a gigabyte.
    reported_until = last_reported_step(run.run_dir) if tracked_run.has_trackers and _resumes_same_run(run) else 0
    trainer.reporters = Reporters(trainer.callback_handler.callbacks, reported_until=reported_until)
    callbacks = [tracked_run, *make_callbacks(trainer, request, prompts)]
    for callback in sorted(callbacks, key=lambda callback: ORDER.index(type(callback))):
        trainer.add_callback(callback)
    return trainer


def make_callbacks(trainer: PretrainingTrainer, request: StopRequest, prompts: list[Prompt]) -> list[TrainerCallback]:
    """The callbacks of a run but TrackedRun, in any order."""
    run, callbacks = trainer.run_config, trainer.callback_handler.callbacks
    checkpoint, minutes = run.start.checkpoint, run.arguments.durability.hang_timeout_minutes
    parent_log = None if checkpoint is None else checkpoint.parent / METRICS_NAME
    start = {
        "resumed_from": None if checkpoint is None else str(checkpoint),
        "num_processes": run.batch.num_processes,
        "num_parameters": num_parameters(run.config),
    }
    metrics_log = MetricsLog(
        run.run_dir, parent_log=parent_log, restart=this_restart(), start=start, phase_of=run.phase_of
    )
    pushes = HubPushCallback(trainer, metrics_log) if trainer.args.push_to_hub else None
    after_save = None if pushes is None else pushes.enqueue_checkpoint
    made = [
        RunStart(trainer),
        CheckpointRotation(trainer, metrics_log, after_save=after_save),
        AnomalyCallback(trainer, metrics_log),
        StepTimer(trainer, make_event=partial(torch.cuda.Event, enable_timing=True) if has_gpu() else None),
        ExportCallback(trainer),
        SampleCallback(trainer, metrics_log, prompts),
        metrics_log,
        TensorBoardResume(run.run_dir, callbacks, step=run.start.step),
        RunDisplay(),
        StopCallback(trainer, metrics_log, request),
        RunSummary(trainer, metrics_log),
        ReportCallback(run),
    ]
    if (profiled := run.arguments.observability.profiled_steps) is not None:
        made.append(Profiler(trainer, profiled))
    if (target := run.arguments.durability.target_loss) is not None and not run.arguments.plan.profile_plan:
        made.append(TargetLoss(trainer, metrics_log, target))
    if run.arguments.plan.profile_plan:
        made.append(AllocatedStates(trainer))
    if pushes is not None:
        made.append(pushes)
    if minutes:
        made.append(HangWatchdog(run.run_dir, minutes=minutes, is_writing=lambda: trainer.saver.is_writing))
    return made


def make_model(run: RunConfig, training_arguments: TrainingArguments) -> PreTrainedModel:
    """The initial weights, with tiles, sequence parallelism, fp8 and compiled layers as the flags ask for."""
    flags, share = run.arguments.model, run.batch.sequence_parallel_size
    model = build_model(
        run.config,
        attention_implementation=flags.attention_implementation,
        seed=training_arguments.seed,
        dtype=training_arguments.hf_deepspeed_config.dtype(),
        device=training_arguments.device,
        parent=_parent_weights(run),
    )
    set_zero_leaf_layers(model)
    if flags.loss_tiles is not None:
        tile_loss(model, num_tiles=flags.loss_tiles)
    if flags.mlp_tiles is not None:
        tile_layers(model, num_tiles=flags.mlp_tiles)
    if run.layout.attention == DOCUMENTS:
        use_document_attention(model)
    if share > 1:
        group = join_sequence_group(share, timeout_seconds=run.arguments.trainer["ddp_timeout"])
        share_attention(run.layout.attention, group)
    if flags.fp8:
        convert_to_fp8(model)
    if flags.compile_layers:
        compile_layers(model)
    return model


def _parent_weights(run: RunConfig) -> ParentWeights | None:
    """The weights to start from, unless they are fresh or those of a checkpoint."""
    parent = run.arguments.parent
    if parent is None or run.start.checkpoint is not None:
        return None
    return ParentWeights(parent, run.config, grows=run.arguments.model.grow_vocabulary)


def step_work(run: RunConfig) -> StepWork:
    """The tokens and FLOPs of a step, from which its speed is computed."""
    length = run.batch.block_length
    return StepWork(
        tokens=run.batch.tokens,
        blocks=run.batch.blocks,
        num_gpus=run.batch.num_processes,
        flops_per_token=flops_per_token(run.config, block_length=length),
        causal_flops_per_token=flops_per_token(run.config, block_length=length, is_causal=True),
        peak_flops_per_second=peak_flops_per_second(torch.cuda.get_device_name()) if has_gpu() else None,
    )


def _resumes_same_run(run: RunConfig) -> bool:
    """Whether the run resumes from a checkpoint in its folder, with the flags that are recorded there."""
    checkpoint = run.start.checkpoint
    is_own = checkpoint is not None and checkpoint.parent.resolve() == run.run_dir.resolve()
    return is_own and matches_recorded_run(run)
