"""run.json at the start of a run: its identity, all resolved flags, the machine and DeepSpeed's config."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from pretraining.data.mixture import Mixture
from pretraining.data.store.manifest import KNOWN_LIMIT_NAME
from pretraining.planning.flops import num_parameters
from pretraining.runs.run_record import RunRecord
from pretraining.system.checked_json import NUMBER, parse_json, type_problem
from pretraining.system.host import machine_inventory
from pretraining.system.launchers import spans_machines
from pretraining.system.privacy import mask_all
from pretraining.system.torch_environment import kernels
from pretraining.training.config.run_config import RunConfig
from pretraining.training.config.run_identity import run_identity
from pretraining.training.distributed.machines import machines
from pretraining.training.distributed.process_group import has_gpu

logger = logging.getLogger(__name__)


def record_start(run_config: RunConfig, arguments: TrainingArguments) -> None:
    """Write run.json before the first step, so that a crash leaves it."""
    RunRecord(
        identity=run_identity(run_config),
        schedule=run_config.schedule.record(),
        arguments=mask_all(_all_arguments(run_config, arguments)),
        ds_config=mask_all(json.loads(Path(run_config.arguments.trainer["deepspeed"]).read_text(encoding="utf-8"))),
        num_parameters=num_parameters(run_config.config),
        block_length=run_config.batch.block_length,
        hardware={
            "num_processes": run_config.batch.num_processes,
            "gpu": torch.cuda.get_device_name() if has_gpu() else None,
            "cuda": torch.version.cuda,
            "kernels": kernels(),
            "threads": torch.get_num_threads(),  # per process; they decide how sums are divided
            **machine_inventory(),
            **({"machines": machines()} if spans_machines() else {}),
        },
        resumed_from=None if run_config.start.checkpoint is None else str(run_config.start.checkpoint),
        known_limit=known_limit_of(run_config.mixture),
        deepspeed_choice=run_config.arguments.choice,
    ).write(run_config.run_dir)


def known_limit_of(mixture: Mixture) -> dict[str, float] | None:
    """The known lower bound of the loss in a block store; None for a mixture, where it depends on the shares."""
    path = mixture.first.folder / KNOWN_LIMIT_NAME
    if len(mixture.parts) > 1 or not path.is_file():
        return None
    try:
        limits = parse_json(path.read_bytes())
        problem = type_problem(limits, {str: NUMBER})
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem is not None:
        logger.warning(
            "%s: is damaged (%s), so the report shows no limit; remove the file or write it again", path, problem
        )
        return None
    return limits


def _all_arguments(run_config: RunConfig, arguments: TrainingArguments) -> Mapping[str, Any]:
    """All resolved flags by name: the Trainer's, with secrets hidden, and over them those of each group."""
    ours = run_config.arguments
    groups = (ours.model, ours.optimization, ours.data, ours.durability, ours.observability, ours.plan)
    flags = {name: value for group in groups for name, value in asdict(group).items()}
    return {
        **arguments.to_dict(),
        **flags,
        "dataset": list(dict.fromkeys(chain.from_iterable(ours.data.datasets))),
        "deepspeed": ours.trainer["deepspeed"],  # the path as given
        "weights": None if ours.parent is None else ours.parent.folder,
        "dataset_commits": [part.store.commit for part in run_config.mixture.parts],
    }
