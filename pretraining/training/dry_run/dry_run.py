"""--dry_run: the plan of a run, on any machine, with its blocks or without them."""

import sys
from dataclasses import replace
from pathlib import Path

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture, read_dataset_texts
from pretraining.data.phases import load_data
from pretraining.data.store.manifest import MANIFEST_NAME
from pretraining.errors import UserError
from pretraining.planning.fit import certainly_fails, problems
from pretraining.planning.suggestions import find_suggestions
from pretraining.planning.table import plan_table
from pretraining.system.launchers import process_rank
from pretraining.training.config.layout import planned_machine
from pretraining.training.dry_run.deepspeed_choice import with_planned_choice
from pretraining.training.dry_run.plan import make_plan


def print_plan(arguments: PretrainArguments) -> None:
    """Write the plan to stdout.

    Raises:
        UserError: when it cannot be planned, or, after the table, when it does not fit or would not start.
    """
    machine, mixture = planned_machine(arguments.plan), local_mixture(arguments)
    chosen: list[str] = []
    if arguments.chooses_deepspeed:
        arguments, chosen = with_planned_choice(arguments, machine, mixture)
    run = make_plan(arguments, machine, mixture)
    run = replace(run, notes=(*chosen, *run.notes))
    needs = problems(run.footprint, run.machine)
    is_certain = certainly_fails(run.footprint, run.machine)
    suggestions = find_suggestions(run.layout, run.machine, run.batch) if needs else []
    if process_rank() == 0:
        obstacle = "" if run.obstacle is None else f"{run.obstacle}\n"
        sys.stdout.write(plan_table(run, suggestions, problems=needs, is_certain=is_certain) + obstacle)
        sys.stdout.flush()
    if is_certain:
        raise UserError(f"--model {run.model}: does not fit {run.machine.name}: needs {' and '.join(needs)}")


def local_mixture(arguments: PretrainArguments) -> Mixture | None:
    """Load the block stores if all are on this machine; a plan creates and downloads nothing."""
    flags = arguments.data
    if flags.is_synthetic:
        return None
    stores = [store for texts in flags.datasets for _, store, _ in read_dataset_texts(texts)]
    if not all((Path(store) / MANIFEST_NAME).is_file() for store in stores):
        return None
    return load_data(flags)
