"""The story of a pretraining run, from checked flags to the exported model.

pretrain.py imports this module only when the flags are right, because it imports torch.
"""

import logging
import time
import warnings
from dataclasses import replace

from transformers.utils import logging as transformers_logging

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.cli.program import RANK0_GRACE_SECONDS, exit_process
from pretraining.data.mixture import Mixture
from pretraining.errors import STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE
from pretraining.runs.run_folder import TOKENIZER_DIR_NAME, quarantine_unusable
from pretraining.system.launchers import process_rank
from pretraining.system.machines.meeting import close_meeting
from pretraining.training.build import make_trainer
from pretraining.training.callbacks.export import quarantine_exports, quarantine_model
from pretraining.training.callbacks.profiler import memory_snapshot
from pretraining.training.config.early_checks import check_profiled_steps
from pretraining.training.config.recording import record_start
from pretraining.training.config.resume import lock_and_verify
from pretraining.training.config.run_config import RunConfig, resolve_run_config
from pretraining.training.config.run_identity import (
    claim_output_dir,
    common_settings,
    has_recorded_end,
    matches_recorded_run,
)
from pretraining.training.config.startup_log import log_run_config
from pretraining.training.data.dataset import UnusableBlockError
from pretraining.training.data.loader import SharedMemoryError
from pretraining.training.distributed.collectives import run_on_main
from pretraining.training.distributed.machines import agree_on_run
from pretraining.training.distributed.process_group import (
    init_process_group,
    limit_gpu_memory,
    local_peers,
    shutdown_process_group,
)
from pretraining.training.dry_run.deepspeed_choice import with_deepspeed_choice
from pretraining.training.dry_run.micro_batch import with_largest_micro_batch
from pretraining.training.dry_run.profile import print_profile, profile_arguments
from pretraining.training.dry_run.temporary_run import ProfileMemoryError, temporary_folder
from pretraining.training.finish import exit_stopped, finish
from pretraining.training.model.weights import agreed_hashes
from pretraining.training.stopping.machine_links import link_machines, naming_lost_peers
from pretraining.training.stopping.orphan_guard import OrphanGuard, end_workers
from pretraining.training.stopping.request import Phase, StopRequest
from pretraining.training.stopping.target_loss import TargetLoss, check_target_loss
from pretraining.training.trainer.trainer import PretrainingTrainer

logger = logging.getLogger(__name__)


def pretrain(arguments: PretrainArguments, mixture: Mixture) -> None:
    """Train, evaluate and export the model."""
    quiet_libraries()
    request = StopRequest()
    request.listen()
    orphan_guard = OrphanGuard(request)
    orphan_guard.start()
    arguments = _with_found_flags(arguments, mixture)
    run = resolve_run_config(profile_arguments(arguments, mixture), mixture)
    check_profiled_steps(run.arguments, run.num_steps)
    check_target_loss(run)
    try:
        with temporary_folder(arguments, run.run_dir):
            trainer = train(run, request, orphan_guard)
            if arguments.plan.profile_plan and not request.is_agreed:
                print_profile(trainer, arguments, mixture)
        if arguments.plan.profile_plan:
            shutdown_process_group(STOPPED_EXIT_CODE if request.is_agreed else 0)
        if request.is_agreed:
            exit_stopped(trainer)
        finish(trainer)
    except (UnusableBlockError, SharedMemoryError, ProfileMemoryError) as error:  # maybe on this process only
        if isinstance(error, ProfileMemoryError) and process_rank() > 0:
            time.sleep(RANK0_GRACE_SECONDS)  # where all processes run out of memory, one message is enough
        logger.error(error)
        orphan_guard.end_peers()
        end_workers()
        exit_process(USER_ERROR_EXIT_CODE)
    request.phase = Phase.LEAVING
    target = trainer.pop_callback(TargetLoss)
    shutdown_process_group(0 if target is None else target.exit_code())


def _with_found_flags(arguments: PretrainArguments, mixture: Mixture) -> PretrainArguments:
    """The flags with what "auto" stands for."""
    if arguments.chooses_deepspeed:
        return with_deepspeed_choice(arguments, mixture)
    return with_largest_micro_batch(arguments, mixture) if arguments.finds_micro_batch else arguments


def train(run: RunConfig, request: StopRequest, orphan_guard: OrphanGuard) -> PretrainingTrainer:
    """Claim the run folder, join the other processes, build the model, and train it."""
    claim_output_dir(run)
    timeout_seconds, stores = run.arguments.trainer["ddp_timeout"], [part.store for part in run.mixture.parts]
    agree_on_run([store.name for store in stores], run.manifests, common_settings(run), seconds=timeout_seconds)
    log_run_config(run)
    link_machines(request, orphan_guard, seconds=timeout_seconds)
    close_meeting()
    init_process_group(timeout_seconds=timeout_seconds)
    orphan_guard.watch(local_peers())
    limit_gpu_memory(run.arguments.plan.gpu_limit_bytes)
    start = lock_and_verify(run.start, run.run_dir, run.resume)
    run = replace(run, start=start, initial_weights=agreed_hashes(run.arguments.parent, run.initial_weights))
    with memory_snapshot(run):
        trainer = make_trainer(run, request)
        run_on_main(lambda: start_run_folder(run, trainer))
        with naming_lost_peers():
            trainer.train(resume_from_checkpoint=None if start.checkpoint is None else str(start.checkpoint))
    return trainer


def quiet_libraries() -> None:
    """Turn off library warnings that appear on every rank and that users of this suite cannot act on."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it compares our accumulation with an unused default
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def start_run_folder(run: RunConfig, trainer: PretrainingTrainer) -> None:
    """Rename what belongs to another run, and record this start before its first step."""
    quarantine_unusable(run.run_dir, step=run.start.step)
    if not matches_recorded_run(run):
        quarantine_exports(run.run_dir, step=run.start.step)
    if run.start.step < run.num_steps and not has_recorded_end(run):
        quarantine_model(run.run_dir)
    trainer.processing_class.save_pretrained(run.run_dir / TOKENIZER_DIR_NAME)
    record_start(run, trainer.args)
