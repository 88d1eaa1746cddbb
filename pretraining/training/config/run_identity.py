"""What makes a run this run and no other, and whether it may go on with what its folder holds."""

import json
import logging
from dataclasses import asdict, fields
from pathlib import Path

import torch

from pretraining.errors import UserError
from pretraining.planning.flops import num_parameters
from pretraining.runs.record_file import read_run_record
from pretraining.runs.run_folder import claim_run_folder, is_run_folder
from pretraining.runs.run_record import RunIdentity, check_same_run, differences, warn_of_processor, warn_of_versions
from pretraining.system.host import processor_name
from pretraining.system.processor import kernels
from pretraining.training.checkpoint.reshard import check_can_reshard
from pretraining.training.config.run_config import RunConfig, data_identity
from pretraining.training.optim.schedule import Schedule, check_same_until

# What a Trainer fills in by itself, and what changes with the library.
IGNORED_CONFIG_FIELDS = ("bos_token_id", "dtype", "architectures", "use_cache", "transformers_version")

SCHEDULE_FIELDS = tuple(f"schedule.{field.name}" for field in fields(Schedule))

logger = logging.getLogger(__name__)


def run_identity(plan: RunConfig) -> RunIdentity:
    """What makes it this run and no other."""
    config = plan.config.to_dict()
    trainer, optimization = plan.arguments.trainer, plan.arguments.optimization
    return RunIdentity(
        data=data_identity(plan.manifests, plan.order),
        tokenizer_sha256=plan.mixture.origin.tokenizer.sha256,
        model_config={name: value for name, value in config.items() if name not in IGNORED_CONFIG_FIELDS},
        global_batch_tokens=plan.batch.tokens,
        seed=trainer["seed"],
        order_seed=plan.order.seed,
        document_masking=plan.arguments.data.document_masking,
        ignore_first_token=plan.arguments.data.ignore_first_token,
        precision=plan.precision,
        optimizer=optimization.optim,
        optimizer_settings={
            "weight_decay": trainer["weight_decay"],
            "weight_decay_on_norms": optimization.weight_decay_on_norms,
            "adam_beta1": trainer.get("adam_beta1", 0.9),
            "adam_beta2": trainer["adam_beta2"],
            "adam_epsilon": trainer.get("adam_epsilon", 1e-8),
            "max_grad_norm": trainer["max_grad_norm"],
        },
        initial_weights=plan.initial_weights,
        product_precision="fp8" if plan.arguments.model.fp8 else None,
    )


def claim_output_dir(plan: RunConfig) -> None:
    """See that this run may write into its folder, and that it is the one that it goes on with.

    Raises:
        UserError: with all differences at once, or when the folder holds something else.
    """
    checkpoint, begun_from = plan.start.checkpoint, _begun_from(plan.run_dir)
    begins_again = plan.resume == "auto" or begun_from == str(checkpoint)
    if checkpoint is not None:
        _check_goes_on(plan, checkpoint)
    elif begins_again and is_run_folder(plan.run_dir):
        _check_same(plan, plan.run_dir)
        if begun_from is not None:
            raise UserError(
                f"--resume {plan.resume}: {plan.run_dir} was begun from {begun_from} and has saved nothing since; give "
                f"--resume {begun_from}"
            )
    claim_run_folder(plan.run_dir, checkpoint, resume="auto" if begins_again else plan.resume)


def _begun_from(run_dir: Path) -> str | None:
    """The checkpoint, of whatever folder, that the run in this one was last started from."""
    return read_run_record(run_dir).get("resumed_from") if is_run_folder(run_dir) else None


def matches_recorded_run(plan: RunConfig) -> bool:
    """Whether what its folder holds was made by the very same run, so that the same would be made again."""
    if not is_run_folder(plan.run_dir):
        return True
    recorded = read_run_record(plan.run_dir)
    ours = json.loads(
        json.dumps({"identity": asdict(run_identity(plan)), "schedule": asdict(plan.schedule)}, default=str)
    )
    return not any(differences(recorded.get(name), value) for name, value in ours.items())


def _check_goes_on(plan: RunConfig, checkpoint: Path) -> None:
    """Refuse to go on with another run, or with a schedule that would have been another one until here.

    One that is another from here on is said: a run is made longer so, but a flag may be forgotten too.
    """
    _check_same(plan, checkpoint.parent)
    warn_of_versions(checkpoint.parent)
    if not plan.machine.has_gpu:
        now = {"cpu": processor_name(), "kernels": kernels(), "threads": torch.get_num_threads()}
        warn_of_processor(checkpoint.parent, now=now)
    check_can_reshard(checkpoint, plan.ds_config, num_processes=plan.batch.num_processes)
    recorded = read_run_record(checkpoint.parent, needs=SCHEDULE_FIELDS)["schedule"]
    changed = differences(recorded, json.loads(json.dumps(asdict(plan.schedule))))
    if changed and "schedule" not in plan.arguments.durability.allow_changed:
        check_same_until(plan.start.step, recorded, plan.schedule, place=f"--resume {checkpoint}")
    for name, was, now in changed:
        logger.warning("from step %d on another schedule: %s was %s, now it is %s", plan.start.step + 1, name, was, now)


def _check_same(plan: RunConfig, run_dir: Path) -> None:
    recorded, ours = read_run_record(run_dir).get("num_parameters"), num_parameters(plan.config)
    if recorded != ours:
        raise UserError(
            f"--model {plan.arguments.model.model}: has {ours:,} parameters, that of {run_dir} has {recorded}; give "
            "the same flags, or another --output_dir"
        )
    check_same_run(run_dir, run_identity(plan), allowed=plan.arguments.durability.allow_changed)
