"""--deepspeed auto: stage, offload, micro batch and checkpointing, by the plan of this machine or a planned one.

What the user has set stays. A resumed run keeps its choice, unless the flags or the processes differ.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretraining import PROJECT_DIR
from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.cli.deepspeed_config import ds_config_problems
from pretraining.data.mixture import Mixture
from pretraining.errors import UserError
from pretraining.planning.layout import MachineSpec
from pretraining.planning.speed import Speeds
from pretraining.planning.zero.choice import CONFIGS, Choice, possible_micro_batches, rank, runner_up, variants
from pretraining.runs.record_file import read_run_record
from pretraining.runs.run_folder import is_run_folder
from pretraining.system.launchers import process_rank, spans_machines
from pretraining.system.machines.meeting import gather
from pretraining.training.config.early_checks import run_folder
from pretraining.training.config.layout import smallest_machine
from pretraining.training.dry_run.micro_batch import from_first_rank, with_micro_batch
from pretraining.training.dry_run.plan import make_plan

FLAG = "--deepspeed auto"
SWITCHES = ("activation_checkpointing", "gradient_checkpointing")
# The flags of each group on which the choice depends; with others a resumed run is ranked again.
PLAN_FLAGS = ("gpu_memory_limit", "assumed_hfu", "assumed_network_gbits")
MODEL_FLAGS = ("loss_tiles", "mlp_tiles", "compile_layers", "sequence_parallel_size", "fp8", "attention_implementation")
DATA_FLAGS = ("global_batch_tokens", "global_batch_blocks")
TRAINER_FLAGS = (
    *SWITCHES,
    *(f"{name}_kwargs" for name in SWITCHES),
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "bf16",
    "fp16",
)

logger = logging.getLogger(__name__)


def with_deepspeed_choice(arguments: PretrainArguments, mixture: Mixture | None) -> PretrainArguments:
    """Set what was chosen, by this start or by the run that is resumed; rank 0 decides, and all processes get that.

    It is made for the machine with the least memory.

    Raises:
        UserError: when no config can be planned.
    """
    seconds = arguments.trainer["ddp_timeout"]
    machine = smallest_machine(seconds=seconds, topic="memory of a choice")
    asked = asked_flags(arguments, machine)

    def decide() -> tuple[dict[str, Any], bool]:
        kept = _recorded(run_folder(arguments), asked)
        return kept or record_of(choose(arguments, machine, mixture)), kept is not None

    if spans_machines():  # which may share no files
        found, is_kept = gather("choice", decide() if process_rank() == 0 else None, seconds=seconds)[0]
    else:
        found, is_kept = from_first_rank(decide)
    logger.info("%s: %s%s", FLAG, found["chosen"], " (as the run was started)" if is_kept else "")
    if found["runner_up"] and not is_kept:
        logger.info("%s: next would be %s", FLAG, found["runner_up"])
    return replace(with_choice(arguments, found["flags"]), choice={**found, "asked": asked})


def with_planned_choice(
    arguments: PretrainArguments, machine: MachineSpec, mixture: Mixture | None
) -> tuple[PretrainArguments, list[str]]:
    """The flags that would be chosen for a machine, and notes for its plan."""
    found = record_of(choose(arguments, machine, mixture))
    notes = [f"{FLAG}: {found['chosen']}"]
    notes += [f"next would be {found['runner_up']}"] if found["runner_up"] else []
    return with_choice(arguments, found["flags"]), notes


def choose(arguments: PretrainArguments, machine: MachineSpec, mixture: Mixture | None) -> list[Choice]:
    """Rank all configs with the micro batches and checkpointing that the flags leave open.

    Raises:
        UserError: when no config can be planned, for the reason of the first.
    """
    choices: list[Choice] = []
    problem: UserError | None = None
    for config, is_checkpointed in _configs(arguments, machine):
        try:
            choices += _choices(arguments, machine, mixture, config, is_checkpointed=is_checkpointed)
        except UserError as error:
            problem = problem or error
    if not choices and problem is not None:
        raise problem
    return rank(choices)


def _configs(arguments: PretrainArguments, machine: MachineSpec) -> Iterator[tuple[str, bool]]:
    """The configs that make a difference on this machine, each without and with checkpointing unless one is set."""
    given = next((bool(arguments.trainer[name]) for name in SWITCHES if arguments.trainer.get(name) is not None), None)
    for config in CONFIGS:
        is_alone = machine.num_processes == 1 and "zero" in config
        is_offloaded_from_nowhere = "offload" in config and not machine.has_gpu
        is_on_one_machine = machine.num_processes == machine.num_local_processes and "hpz" in config
        if not (is_alone or is_offloaded_from_nowhere or is_on_one_machine):
            yield from ((config, switch) for switch in ((False, True) if given is None else (given,)))


def _choices(
    arguments: PretrainArguments, machine: MachineSpec, mixture: Mixture | None, config: str, *, is_checkpointed: bool
) -> Iterator[Choice]:
    flags = {"deepspeed": config, "activation_checkpointing": is_checkpointed}
    is_open = arguments.trainer["per_device_train_batch_size"] is None
    start = with_choice(arguments, flags | ({"per_device_train_batch_size": 1} if is_open else {}))
    if problems := list(ds_config_problems(start)):
        raise UserError(*problems)
    plan = make_plan(start, machine, mixture)
    choice = Choice(config, is_checkpointed, plan.layout, plan.batch, plan.machine, Speeds.of(arguments.plan))
    numbers = possible_micro_batches(plan.batch) if is_open else [plan.batch.micro_batch_blocks]
    yield from variants(choice, numbers)


def config_path(name: str) -> str:
    """A config of this project, by its name alone where the working folder is that of the project."""
    path = PROJECT_DIR / name
    return name if Path.cwd() == path.parent else str(path)


def with_choice(arguments: PretrainArguments, flags: dict[str, Any]) -> PretrainArguments:
    """Set chosen flags, the config by its path; a micro batch with as many micro steps as keep the global batch."""
    number = flags.get("per_device_train_batch_size")
    if number is not None and arguments.trainer["per_device_train_batch_size"] is None:
        open_one = {**arguments.trainer, "per_device_train_batch_size": 1}
        arguments = with_micro_batch(replace(arguments, trainer=open_one), number)
    trainer = {**arguments.trainer, "deepspeed": config_path(flags["deepspeed"])}
    trainer |= {"activation_checkpointing": flags["activation_checkpointing"], "gradient_checkpointing": None}
    return replace(arguments, trainer=trainer)


def record_of(ranked: list[Choice]) -> dict[str, Any]:
    """The best choice and the next one, as run.json has them."""
    best, other = ranked[0], runner_up(ranked)
    return {
        "flags": {
            "deepspeed": best.config,  # its name alone: the project may be in another folder when a run resumes
            "activation_checkpointing": best.is_checkpointed,
            "per_device_train_batch_size": best.layout.micro_batch_blocks,
        },
        "chosen": best.describe(),
        "runner_up": None if other is None else other.describe(),
    }


def asked_flags(arguments: PretrainArguments, machine: MachineSpec) -> dict[str, Any]:
    """What a recorded choice must have been made for, to be kept."""
    return {
        "num_processes": machine.num_processes,
        "num_local_processes": machine.num_local_processes,
        "optim": arguments.optimization.optim,
        "grad_accum_dtype": arguments.optimization.grad_accum_dtype,
        **{name: getattr(arguments.plan, name) for name in PLAN_FLAGS},
        **{name: getattr(arguments.model, name) for name in MODEL_FLAGS},
        **{name: getattr(arguments.data, name) for name in DATA_FLAGS},
        **{name: arguments.trainer.get(name) for name in TRAINER_FLAGS},
    }


def _recorded(run_dir: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The choice of the run in this folder, if it was made for the same flags and processes."""
    if not is_run_folder(run_dir):
        return None
    choice = read_run_record(run_dir).get("deepspeed_choice") or {}
    return {name: choice[name] for name in ("flags", "chosen", "runner_up")} if choice.get("asked") == asked else None
