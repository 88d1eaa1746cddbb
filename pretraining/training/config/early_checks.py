"""Checks of a run's data, batch and folder before torch is imported, which takes seconds in every process."""

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture
from pretraining.data.store.integrity import file_in_store
from pretraining.data.store.manifest import Manifest
from pretraining.data.tokenize.tokenizer import TOKENIZER_FILES, load_document_tokenizer
from pretraining.errors import UserError, raise_problems
from pretraining.planning.global_batch import GlobalBatch, resolve_global_batch
from pretraining.runs.claim import checkpoint_to_resume, is_effectively_empty
from pretraining.runs.run_folder import checkpoint_step, complete_checkpoints, is_run_folder
from pretraining.system.files import sha256_of
from pretraining.system.gpus import driver_gpu_names
from pretraining.system.launchers import check_cores, num_processes
from pretraining.system.supervision import this_restart
from pretraining.training.data.order import make_order
from pretraining.training.model.fields import heads_of, model_fields

logger = logging.getLogger(__name__)


def check_inputs(arguments: PretrainArguments, mixture: Mixture) -> None:
    """Check model, data, batch and run folder, as far as neither torch nor the machine decides.

    Raises:
        UserError: with all problems at once.
    """
    if not driver_gpu_names():
        check_cores()  # first and alone: a batch for too many processes is not what is wrong
    parts = [partial(check_tokenizer, part.store.folder, part.store.manifest) for part in mixture.parts]
    checks: list[Callable[[], object]] = [
        *parts,
        lambda: _check_batch(arguments, mixture),
        lambda: make_order(mixture, seed=0),
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
    if not arguments.finds_micro_batch:
        resolve_global_batch(arguments, heads_of(fields), mixture.origin.block_length, num_processes())


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


def check_blocks(mixture: Mixture, batch: GlobalBatch, *, evaluates: bool) -> None:
    """Reject stores without a training block, and steps larger than an epoch; warn when validation is empty.

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
    num_blocks = sum(counts)
    if num_blocks < batch.blocks:
        per_micro_step = batch.micro_batch_blocks * batch.num_groups
        largest = num_blocks // per_micro_step * per_micro_step * batch.block_length
        smaller = f"{largest} or less" if largest else "fewer processes or a smaller --per_device_train_batch_size"
        raise UserError(
            f"--global_batch_tokens {batch.tokens}: a step of {batch.blocks:,} blocks is more than the "
            f"{num_blocks:,} of an epoch; use {smaller}, or preprocess more text"
        )
    if evaluates and sum(mixture.num_blocks("validation")) == 0:
        logger.warning(
            "--dataset %s: validation has no block, so nothing is evaluated during training; preprocess with a "
            "smaller --block_length or another --split",
            mixture.names,
        )


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
