"""What run.json gets from a run that starts: all its flags, the machine, and what DeepSpeed makes of its config."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from pretraining.data.mixture import Mixture
from pretraining.data.store.manifest import KNOWN_LIMIT_NAME
from pretraining.planning.flops import num_parameters
from pretraining.runs.checked_json import NUMBER, parse_json, type_problem
from pretraining.runs.run_record import RunRecord
from pretraining.system.host import machine_inventory
from pretraining.system.privacy import mask_all
from pretraining.system.processor import kernels
from pretraining.training.config.run_config import RunConfig
from pretraining.training.config.run_identity import run_identity
from pretraining.training.distributed.process_group import has_gpu

logger = logging.getLogger(__name__)


def record_start(plan: RunConfig, arguments: TrainingArguments) -> None:
    """Write run.json before the first step, so that it outlives a crash."""
    RunRecord(
        identity=run_identity(plan),
        schedule=asdict(plan.schedule),
        arguments=mask_all(_all_arguments(plan, arguments)),
        ds_config=mask_all(json.loads(Path(plan.arguments.trainer["deepspeed"]).read_text(encoding="utf-8"))),
        num_parameters=num_parameters(plan.config),
        block_length=plan.batch.block_length,
        hardware={
            "num_processes": plan.batch.num_processes,
            "gpu": torch.cuda.get_device_name() if has_gpu() else None,
            "cuda": torch.version.cuda,
            "kernels": kernels(),
            "threads": torch.get_num_threads(),  # of a process; a sum is divided among them
            **machine_inventory(),
        },
        resumed_from=None if plan.start.checkpoint is None else str(plan.start.checkpoint),
        known_limit=known_limit_of(plan.mixture),
    ).write(plan.run_dir)


def known_limit_of(mixture: Mixture) -> dict[str, float] | None:
    """What a block store tells of the limit of its data; None of a mixture, whose shares would be in it."""
    path = mixture.first.folder / KNOWN_LIMIT_NAME
    if len(mixture.parts) > 1 or not path.is_file():
        return None
    try:
        limits = parse_json(path.read_bytes())
        problem = type_problem(limits, {str: NUMBER})
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem is not None:
        logger.warning("%s: is damaged (%s), so the report shows no limit; remove it, or write it again", path, problem)
        return None
    return limits


def _all_arguments(plan: RunConfig, arguments: TrainingArguments) -> Mapping[str, Any]:
    """Every flag as it was resolved, by its name: the Trainer's, secrets hidden, and over them those of each group."""
    ours = plan.arguments
    groups = (ours.model, ours.optimization, ours.data, ours.durability, ours.observability, ours.plan)
    flags = {name: value for group in groups for name, value in asdict(group).items()}
    return {
        **arguments.to_dict(),
        **flags,
        "deepspeed": ours.trainer["deepspeed"],  # the path, as it was given
        "weights": ours.weights,
        "dataset_commits": [part.store.commit for part in plan.mixture.parts],
    }
