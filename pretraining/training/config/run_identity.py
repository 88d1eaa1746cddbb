"""What identifies a run, and whether it may resume what its folder contains."""

import json
import logging
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch

from pretraining.errors import UserError
from pretraining.planning.flops import num_parameters
from pretraining.runs.claim import claim_run_folder
from pretraining.runs.record_file import read_run_record
from pretraining.runs.run_folder import is_run_folder
from pretraining.runs.run_record import (
    RunIdentity,
    changes_of_identity,
    check_same_run,
    differences,
    warn_of_processor,
    warn_of_versions,
)
from pretraining.system.host import processor_name
from pretraining.system.torch_environment import kernels
from pretraining.training.checkpoint.reshard import check_can_reshard
from pretraining.training.config.run_config import RunConfig, data_identity
from pretraining.training.optim.schedule import Schedule, check_same_until

# The Trainer fills these in, or they change with the version of the library.
IGNORED_CONFIG_FIELDS = ("bos_token_id", "dtype", "architectures", "use_cache", "transformers_version")

SCHEDULE_FIELDS = tuple(f"schedule.{field.name}" for field in fields(Schedule) if field.default is MISSING)

# What all processes do together, beside what the flags are resolved to. Paths and numbers of workers may differ.
COMMON_FLAGS = (
    *("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("global_batch_tokens", "global_batch_blocks", "attention_implementation", "loss_tiles", "mlp_tiles"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "eval_strategy", "eval_steps", "eval_delay"),
    *("eval_on_start", "per_device_eval_batch_size", "eval_blocks", "sample_steps", "sample_tokens"),
    *("save_strategy", "save_steps", "load_best_model_at_end", "export", "export_every_tokens", "logging_strategy"),
    *("logging_steps", "target_loss", "on_spike", "spike_threshold", "max_rollbacks"),
)

logger = logging.getLogger(__name__)


def run_identity(run_config: RunConfig) -> RunIdentity:
    """All that a resumed run must have in common with the run that it resumes."""
    config, arguments = run_config.config.to_dict(), run_config.arguments
    trainer, optimization = arguments.trainer, arguments.optimization
    return RunIdentity(
        data=data_identity(run_config.planned, run_config.arguments),
        tokenizer_sha256=run_config.mixture.origin.tokenizer.sha256,
        model_config={name: value for name, value in config.items() if name not in IGNORED_CONFIG_FIELDS},
        global_batch_tokens=run_config.batch.tokens,
        seed=trainer["seed"],
        order_seed=run_config.planned[0].order.seed,
        document_masking=arguments.data.document_masking,
        ignore_first_token=arguments.data.ignore_first_token,
        precision=run_config.precision,
        optimizer=optimization.optim,
        optimizer_settings={
            "weight_decay": trainer["weight_decay"],
            "weight_decay_on_norms": optimization.weight_decay_on_norms,
            "adam_beta1": trainer.get("adam_beta1", 0.9),
            "adam_beta2": trainer["adam_beta2"],
            "adam_epsilon": trainer.get("adam_epsilon", 1e-8),
            "max_grad_norm": trainer["max_grad_norm"],
        },
        initial_weights=run_config.initial_weights,
        product_precision="fp8" if arguments.model.fp8 else None,
    )


def common_settings(run_config: RunConfig) -> dict[str, dict[str, Any]]:
    """What must be the same in all processes, as JSON: flags, and what these, the files and the machine resolve to."""
    arguments, identity = run_config.arguments, asdict(run_identity(run_config))
    del identity["initial_weights"]  # read by one process of each machine; `agreed_hashes` compares them
    groups = (arguments.model, arguments.optimization, arguments.data, arguments.durability, arguments.observability)
    flags = {**arguments.trainer, **{name: value for group in groups for name, value in vars(group).items()}}
    batch = {name: value for name, value in vars(run_config.batch).items() if name != "flag"}
    resolved = {
        **identity,
        "schedule": run_config.schedule.record(),
        "num_steps": run_config.num_steps,
        "batch": batch,
        "ds_config": run_config.ds_config,
    }
    settings = {"flags": {f"--{name}": flags.get(name) for name in COMMON_FLAGS}, "resolved": resolved}
    return json.loads(json.dumps(settings, default=str))


def claim_output_dir(run_config: RunConfig) -> None:
    """Check that this run may write to its folder and is the one that it resumes; create the folder if needed.

    Raises:
        UserError: with all differences at once, or when the folder contains something else.
    """
    run_dir, resume, checkpoint = run_config.run_dir, run_config.resume, run_config.start.checkpoint
    # The checkpoint, of any run folder, that the run in this folder was last started from.
    recorded_start = read_run_record(run_dir).get("resumed_from") if is_run_folder(run_dir) else None
    starts_again = resume == "auto" or recorded_start == str(checkpoint)
    if checkpoint is not None:
        _check_resumable(run_config, checkpoint)
    elif starts_again and is_run_folder(run_dir):
        _check_same(run_config, run_dir)
        if recorded_start is not None:
            raise UserError(
                f"--resume {resume}: {run_dir} was started from {recorded_start} and has no checkpoint yet; pass "
                f"--resume {recorded_start}"
            )
    claim_run_folder(run_dir, checkpoint, resume="auto" if starts_again else resume)


def matches_recorded_run(run_config: RunConfig) -> bool:
    """Whether the folder's run, if any, has the same identity and schedule, and so would be made again."""
    if not is_run_folder(run_config.run_dir):
        return True
    recorded = read_run_record(run_config.run_dir)
    schedule = json.loads(json.dumps(run_config.schedule.record(), default=str))
    return not (
        changes_of_identity(recorded.get("identity", {}), run_identity(run_config))
        or differences(recorded.get("schedule"), schedule)
    )


def has_recorded_end(run_config: RunConfig) -> bool:
    """Whether the folder's run, if any, would be made again, and end at the same step or target."""
    if not is_run_folder(run_config.run_dir):
        return True
    recorded = read_run_record(run_config.run_dir).get("arguments", {})
    own = {"max_steps": run_config.num_steps, "target_loss": run_config.arguments.durability.target_loss}
    return matches_recorded_run(run_config) and own == {name: recorded.get(name) for name in own}


def _check_resumable(run_config: RunConfig, checkpoint: Path) -> None:
    """Reject another run, and a schedule that differs before the checkpoint.

    A schedule that differs from here on is logged: that is how a run is extended, but a flag may be forgotten too.
    """
    _check_same(run_config, checkpoint.parent)
    warn_of_versions(checkpoint.parent)
    if not run_config.machine.has_gpu:
        now = {"cpu": processor_name(), "kernels": kernels(), "threads": torch.get_num_threads()}
        warn_of_processor(checkpoint.parent, now=now)
    check_can_reshard(checkpoint, run_config.ds_config, num_processes=run_config.batch.num_processes)
    step, schedule = run_config.start.step, run_config.schedule
    if run_config.has_changed_phases and "data" not in run_config.arguments.durability.allow_changed:
        data = "phases" if run_config.arguments.data.phases else "data sets"
        raise UserError(
            f"--resume {checkpoint}: these {data} give step {step:,} other data than it was trained on; use the {data} "
            "of that run, or pass --allow_changed data"
        )
    recorded = read_run_record(checkpoint.parent, needs=SCHEDULE_FIELDS)["schedule"]
    changed = differences(recorded, json.loads(json.dumps(schedule.record())))
    if changed and "schedule" not in run_config.arguments.durability.allow_changed:
        check_same_until(step, recorded, schedule, place=f"--resume {checkpoint}")
    for name, before, now in changed:
        logger.warning("the schedule changes from step %d on: %s was %s, now it is %s", step + 1, name, before, now)


def _check_same(run_config: RunConfig, run_dir: Path) -> None:
    recorded, own = read_run_record(run_dir).get("num_parameters"), num_parameters(run_config.config)
    if recorded != own:
        raise UserError(
            f"{run_config.arguments.model.place}: has {own:,} parameters, the model of {run_dir} has "
            f"{recorded}; use the same flags, or another --output_dir"
        )
    check_same_run(run_dir, run_identity(run_config), allowed=run_config.arguments.durability.allow_changed)
