"""What can be checked of a run before torch is imported, which takes seconds in every process."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture
from pretraining.errors import UserError
from pretraining.runs.run_folder import (
    checkpoint_step,
    checkpoint_to_resume,
    complete_checkpoints,
    is_effectively_empty,
    is_run_folder,
)
from pretraining.system.gpus import driver_gpu_names
from pretraining.system.launchers import check_cores, num_processes
from pretraining.system.supervision import this_restart
from pretraining.training.config.batch import plan_batch
from pretraining.training.config.data_checks import check_tokenizer, make_order
from pretraining.training.model.fields import heads_of, model_fields


def check_inputs(arguments: PretrainArguments, mixture: Mixture) -> None:
    """Check model, data, batch and run folder, as far as neither torch nor the machine decides.

    Raises:
        UserError: with all problems at once.
    """
    if not driver_gpu_names():
        check_cores()  # alone: a batch for other processes would not be what is wrong
    parts = [partial(check_tokenizer, part.store.folder, part.store.manifest) for part in mixture.parts]
    checks: list[Callable[[], object]] = [
        *parts,
        lambda: _check_batch(arguments, mixture),
        lambda: make_order(mixture, seed=0),
        lambda: check_run_folder(run_folder(arguments), arguments.durability.resume),
    ]
    problems = [problem for check in checks for problem in _problems(check)]
    if problems:
        raise UserError(*problems)


def _problems(check: Callable[[], object]) -> tuple[str, ...]:
    try:
        check()
    except UserError as error:
        return error.problems
    return ()


def _check_batch(arguments: PretrainArguments, mixture: Mixture) -> None:
    fields = model_fields(arguments.model, mixture.origin)
    if not arguments.finds_micro_batch:
        plan_batch(arguments, heads_of(fields), mixture.origin.block_length, num_processes())


def run_folder(arguments: PretrainArguments) -> Path:
    """--output_dir, or a folder named after the preset, the repository, or the folder or file of a config."""
    path = Path(arguments.model.model)
    name = path.resolve().parent.name if path.name == "config.json" else path.name.removesuffix(".json")
    return Path(arguments.trainer["output_dir"] or Path("runs") / name)


def check_run_folder(run_dir: Path, resume: str) -> None:
    """Refuse a folder that cannot be a run folder, and a checkpoint that is not there."""
    existing = next(place for place in (run_dir, *run_dir.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise UserError(f"--output_dir {run_dir}: cannot be written ({existing} is not a folder); choose another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"--output_dir {run_dir}: cannot be written (no permission in {existing}); choose another folder"
        )
    if run_dir.exists() and not (
        is_run_folder(run_dir) or is_effectively_empty(run_dir) or complete_checkpoints(run_dir)
    ):
        raise UserError(f"--output_dir {run_dir}: holds something else already; choose another folder")
    checkpoint_to_resume(run_dir, effective_resume_mode(run_dir, resume))


def effective_resume_mode(run_dir: Path, resume: str) -> str:
    """--resume, which in a restart by tools.supervise means `auto` once something was saved."""
    if resume == "auto" or this_restart() is None:
        return resume
    # The first attempt renamed the checkpoints after the named one.
    named = checkpoint_step(Path(resume)) or 0
    has_saved = any((checkpoint_step(checkpoint) or 0) > named for checkpoint in complete_checkpoints(run_dir))
    return "auto" if has_saved or resume == "never" else resume
