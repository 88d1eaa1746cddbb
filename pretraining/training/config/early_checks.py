"""Checks of a run's data, batch and folder before torch is imported, which takes seconds in every process."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture
from pretraining.data.phases import naming_phase
from pretraining.data.store.integrity import file_in_store
from pretraining.data.store.manifest import Manifest
from pretraining.data.tokenize.reference import TOKENIZER_FILES
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError, raise_problems
from pretraining.planning.global_batch import GlobalBatch, resolve_global_batch
from pretraining.planning.length import oversized_step
from pretraining.runs.claim import checkpoint_to_resume, is_effectively_empty
from pretraining.runs.run_folder import checkpoint_step, complete_checkpoints, is_run_folder
from pretraining.system.files import sha256_of
from pretraining.system.gpus import driver_gpu_names
from pretraining.system.launchers import check_cores, num_processes
from pretraining.system.supervision import this_restart
from pretraining.training.config.advice import empty_split_warnings
from pretraining.training.data.order import make_order
from pretraining.training.model.fields import heads_of, model_fields
from pretraining.training.model.parent import check_vocabulary
from pretraining.training.tasks.files import read_tasks

logger = logging.getLogger(__name__)


def check_inputs(arguments: PretrainArguments, mixture: Mixture) -> None:
    """Check model, data, batch and run folder, as far as neither torch nor the machine decides.

    Raises:
        UserError: with all problems at once.
    """
    if not driver_gpu_names():
        check_cores()  # first and alone: a batch for too many processes is not what is wrong
    if arguments.parent is not None:  # first and alone: for another tokenizer nothing else is to be corrected
        check_vocabulary(arguments.parent, mixture.first, grows=arguments.model.grow_vocabulary)
    parts = [partial(check_tokenizer, part.store.folder, part.store.manifest) for part in mixture.parts]
    checks: list[Callable[[], object]] = [
        *parts,
        lambda: _check_batch(arguments, mixture),
        lambda: _check_shares(arguments, mixture),
        lambda: _check_tasks(arguments, mixture),
        lambda: check_run_folder(run_folder(arguments), arguments.durability.resume),
    ]
    raise_problems(problem for check in checks for problem in _problems(check))


def _problems(check: Callable[[], object]) -> tuple[str, ...]:
    try:
        check()
    except UserError as error:
        return error.problems
    return ()


def _check_batch(arguments: PretrainArguments, mixture: Mixture) -> None:
    fields = model_fields(arguments.model, mixture.origin)
    if isinstance(arguments.trainer["per_device_train_batch_size"], int):  # neither found by trials nor planned
        batch = resolve_global_batch(arguments, heads_of(fields), mixture.origin.block_length, num_processes())
        num_blocks = sum(mixture.num_blocks("train"))
        warmup_steps, is_synthetic = arguments.trainer["warmup_steps"], arguments.data.is_synthetic
        too_large = oversized_step(batch, num_blocks, warmup_steps=warmup_steps, is_synthetic=is_synthetic)
        if num_blocks and too_large is not None:
            raise UserError(too_large)


def _check_shares(arguments: PretrainArguments, mixture: Mixture) -> None:
    for phase, part in zip(arguments.data.phases, mixture.phases, strict=False):
        with naming_phase(phase):
            make_order(part, seed=0)
    if not mixture.phases:
        make_order(mixture, seed=0)


def _check_tasks(arguments: PretrainArguments, mixture: Mixture) -> None:
    tasks = read_tasks(arguments.observability.eval_tasks, flag="--eval_tasks")
    if tasks and arguments.data.is_synthetic:
        raise UserError(
            "--eval_tasks --dataset synthetic: random ids have no text, in which tasks are; remove the flag, or use a "
            "block store of preprocess.py"
        )
    if tasks and sum(mixture.num_blocks("validation")) == 0:
        raise UserError(
            f"--eval_tasks: --dataset {mixture.names} has no block of validation, with whose evaluation tasks are "
            "scored; preprocess with a smaller --block_length or another --split, or remove the flag"
        )


def check_tokenizer(store: Path, manifest: Manifest) -> None:
    """Reject a block store whose tokenizer/ is not the one that made its ids."""
    identity = manifest.origin.tokenizer
    path = file_in_store(store, "tokenizer/tokenizer.json", flag="--dataset")
    for name in TOKENIZER_FILES[1:]:
        if (path.parent / name).exists():
            file_in_store(store, f"tokenizer/{name}", flag="--dataset")
    if sha256_of(path) != identity.sha256:
        raise UserError(
            f"--dataset {store}: {path} is not the one that made the blocks (its SHA-256 is not that of the manifest); "
            "copy the folder again, or preprocess again"
        )
    add_bos = manifest.origin.token_rules.bos_token_id is not None
    tokenizer = load_document_tokenizer(str(path.parent), add_bos=add_bos, flag="--dataset")
    if tokenizer.identity().canary_ids != identity.canary_ids:
        raise UserError(
            f"--dataset {store}: this version of `tokenizers` gives other ids for the canary text of the manifest; "
            "install the version of requirements.lock, or preprocess again"
        )


def check_blocks(
    mixture: Mixture, batch: GlobalBatch, *, is_synthetic: bool, evaluates: bool, resumes: bool = False
) -> None:
    """Reject stores without a training block, and steps larger than an epoch; warn of an empty validation or test.

    Raises:
        UserError: with what to change.
    """
    counts = mixture.num_blocks("train")
    for part, count in zip(mixture.parts, counts, strict=True):
        if count == 0:
            raise UserError(
                f"--dataset {part.store.name}: train has no block of {batch.block_length:,} tokens; preprocess more "
                "text, or with a smaller --block_length"
            )
    if (too_large := oversized_step(batch, sum(counts), is_synthetic=is_synthetic)) is not None:
        raise UserError(too_large)
    for warning in empty_split_warnings(mixture, evaluates=evaluates, resumes=resumes):
        logger.warning(warning)


def run_folder(arguments: PretrainArguments) -> Path:
    """--output_dir, or a folder named after the preset, the repository, or the folder or file of a config."""
    path = Path(arguments.model.model)
    name = path.resolve().parent.name if path.name == "config.json" else path.name.removesuffix(".json")
    return Path(arguments.trainer["output_dir"] or Path("runs") / name)


def check_run_folder(run_dir: Path, resume: str) -> None:
    """Reject a folder that cannot be a run folder, and a checkpoint that does not exist."""
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
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


def check_profiled_steps(arguments: PretrainArguments, num_steps: int | None) -> None:
    """Reject steps of --profile that a run of `num_steps` does not have; None: its length is not known yet.

    Raises:
        UserError: with the last step.
    """
    steps = arguments.observability.profiled_steps
    if steps is not None and num_steps is not None and steps[-1] > num_steps:
        raise UserError(
            f"--profile {arguments.observability.profile}: the run ends after step {num_steps:,}; use steps up to that "
            "one, or a longer run"
        )
