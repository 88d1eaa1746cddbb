"""--per_device_train_batch_size auto: the largest one that fits, found by trial steps; the global batch stays."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture
from pretraining.errors import UserError
from pretraining.planning.fit import fits
from pretraining.planning.footprint import footprint
from pretraining.planning.layout import TrainingLayout
from pretraining.planning.machine import MachineSpec
from pretraining.runs.record_file import read_run_record
from pretraining.runs.run_folder import is_run_folder
from pretraining.training.config.early_checks import run_folder
from pretraining.training.config.machine import this_machine
from pretraining.training.dry_run.dry_run import plan_without_start
from pretraining.training.dry_run.trial import FITS, TrialRendezvous, TrialSize

TRIAL_STEPS = 2  # the second has the optimizer's moments as well
TRIAL_MICRO_STEPS = 2  # the second adds to the gradients of the first
PLAN_ERROR = 0.1  # a GPU's memory may turn out so much larger or smaller than planned; without a GPU the plan decides

logger = logging.getLogger(__name__)


def with_largest_micro_batch(arguments: PretrainArguments, mixture: Mixture) -> PretrainArguments:
    """The flags with the number that was found, by this start or by the one that it goes on with.

    Raises:
        UserError: when not even one block at a time fits.
    """
    machine = this_machine()
    found = _found_before(run_folder(arguments), machine)
    first = with_micro_batch(arguments, 1)
    plan = plan_without_start(first, machine, mixture)
    num_blocks = plan.batch.blocks // plan.batch.num_groups
    if found is None or num_blocks % found:
        found = _find(plan.layout, machine, num_blocks)
    if found is None:
        raise UserError("--per_device_train_batch_size auto: not even one block fits; --dry_run shows what would")
    logger.info("--per_device_train_batch_size auto: %d blocks at a time, %d micro steps", found, num_blocks // found)
    return with_micro_batch(arguments, found)


def with_micro_batch(arguments: PretrainArguments, number: int) -> PretrainArguments:
    """The flags with another micro batch and the same global batch."""
    trainer = {**arguments.trainer, "per_device_train_batch_size": number}
    if arguments.data.global_batch_tokens is None:
        micro_steps = arguments.trainer.get("gradient_accumulation_steps") or 1
        blocks = (1 if arguments.finds_micro_batch else arguments.trainer["per_device_train_batch_size"]) * micro_steps
        trainer["gradient_accumulation_steps"] = blocks // number
    return replace(arguments, trainer=trainer)


def largest(numbers: Sequence[int], does_fit: Callable[[int], bool], *, begin: int) -> int | None:
    """The largest of ascending `numbers` that fits, if one does; `begin` is the place of the one to try first."""
    place = begin
    while place >= 0 and not does_fit(numbers[place]):
        place -= 1
    if place == begin:
        while place + 1 < len(numbers) and does_fit(numbers[place + 1]):
            place += 1
    return numbers[place] if place >= 0 else None


def _find(layout: TrainingLayout, machine: MachineSpec, num_blocks: int) -> int | None:
    with TrialRendezvous() as place:
        # Host memory is another amount at each look, and all processes must try the same.
        numbers, begin = place.from_first(lambda: _candidates(layout, machine, num_blocks))
        if not numbers:
            return None

        def does_fit(number: int) -> bool:
            size = TrialSize(number, min(TRIAL_MICRO_STEPS, num_blocks // number), TRIAL_STEPS)
            outcome, _ = place.run(size)
            logger.info("--per_device_train_batch_size auto: %d blocks at a time: %s", number, outcome)
            return outcome == FITS

        return largest(numbers, does_fit, begin=begin)


def _candidates(layout: TrainingLayout, machine: MachineSpec, num_blocks: int) -> tuple[list[int], int]:
    """Only what may fit, and the place of the largest that fits by plan, to begin with."""
    divisors = [number for number in range(1, num_blocks + 1) if num_blocks % number == 0]
    numbers = [number for number in divisors if _may_fit(replace(layout, micro_batch_blocks=number), machine)]
    planned = [number for number in numbers if fits(replace(layout, micro_batch_blocks=number), machine)]
    return numbers, max(0, len(planned) - 1)


def _may_fit(layout: TrainingLayout, machine: MachineSpec) -> bool:
    if machine.gpu_bytes is None:
        return fits(layout, machine)
    return footprint(layout).gpu_bytes <= machine.gpu_bytes * (1 + PLAN_ERROR)


def _found_before(run_dir: Path, machine: MachineSpec) -> int | None:
    """What the run in this folder was started with on as many GPUs, so that it goes on the same to the bit."""
    if not is_run_folder(run_dir):
        return None
    record: dict[str, Any] = read_run_record(run_dir)
    if record.get("hardware", {}).get("num_processes") != machine.num_processes:
        return None
    return record.get("arguments", {}).get("per_device_train_batch_size")
