"""Read run.json with checked types, or its copy in a checkpoint where it is lost or damaged."""

import functools
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pretraining.errors import UserError
from pretraining.runs.run_folder import RUN_RECORD_NAME, complete_checkpoints
from pretraining.system.checked_json import NUMBER, parse_json, type_problem

DAMAGED_SUFFIX = ".damaged"
SCHEDULE = {
    "shape": str,
    "peak": NUMBER,
    "minimum": NUMBER,
    "warmup_steps": int,
    "decay_steps": int,
    "num_steps": int,
}
# The fields that programs use, and their types. Other fields can be anything; these can be missing.
SCHEMA: dict[str, Any] = {
    "command": str,
    "identity": {
        "data": [{"manifest_sha256": str, "blocks_per_1000": int}],
        "tokenizer_sha256": str,
        "model_config": dict,
        "global_batch_tokens": int,
        "seed": int,
        "document_masking": bool,
        "precision": str,
        "product_precision": str | None,
        "optimizer": str,
        "optimizer_settings": dict,
        "initial_weights": dict | None,
    },
    "schedule": {**SCHEDULE, "later": [{**SCHEDULE, "first_step": int, "initial": NUMBER}]},
    "arguments": {
        "max_steps": int,
        "model": str,
        "dataset": list | str,
        "phases": [{"name": str, "share": NUMBER}],
        "learning_rate": NUMBER,
        "per_device_train_batch_size": int,
    },
    "num_parameters": int,
    "block_length": int,
    "hardware": {
        "num_processes": int,
        "gpu": str | None,
        "gpus": [{"name": str, "memory_bytes": int}],
        "driver": str | None,
        "cpu": str | None,
        "kernels": str | None,
        "num_cpu_cores": int | None,
        "memory_bytes": int | None,
    },
    "resumed_from": str | None,
    "known_limit": (None, {str: NUMBER}),
    "python": str,
    "packages": {str: str | None},
    "git": (None, {"commit": str, "is_dirty": bool}),
    "earlier_starts": [dict],
}

# Names of fields before version 1.0, so that runs of that time resume.
RENAMED_FIELDS = {
    "isolate_documents": "document_masking",
    "mask_document_starts": "ignore_first_token",
    "plan_only": "dry_run",
    "plan_measure": "profile_plan",
    "hang_minutes": "hang_timeout_minutes",
    "assumed_mfu": "assumed_hfu",
}

logger = logging.getLogger(__name__)


def read_run_record(run_dir: Path, *, needs: Collection[str] = ()) -> dict[str, Any]:
    """The content of run.json, or of its newest copy in a checkpoint with a warning if it is lost or damaged.

    `needs` are the fields that must exist, e.g. "identity.precision". All fields of `SCHEMA` have their types.

    Raises:
        UserError: when neither can be read.
    """
    path = run_dir / RUN_RECORD_NAME
    found = read_record_file(path, needs=needs)
    if not isinstance(found, str):
        return found
    copy = newest_copy(run_dir)
    if copy is None:
        if complete_checkpoints(run_dir):
            raise UserError(f"{path}: {found}, and no checkpoint has a copy of it; restore it from a backup")
        raise UserError(f"{path}: {found}; pass a run folder{', or restore it from a backup' * path.exists()}")
    record = read_record_file(copy, needs=needs)
    if isinstance(record, str):
        raise UserError(f"{path}: {found}, and its copy {copy} {record}; restore it from a backup")
    _warn_once(f"{path}: {found}; using its copy {copy}")
    return record


def newest_copy(run_dir: Path) -> Path | None:
    """The copy of run.json in the newest complete checkpoint that has one; earlier versions wrote none."""
    copies = (checkpoint / RUN_RECORD_NAME for checkpoint in reversed(complete_checkpoints(run_dir)))
    return next((copy for copy in copies if copy.is_file()), None)


def record_of_checkpoint(checkpoint: Path, *, needs: Collection[str] = ()) -> dict[str, Any] | None:
    """The run.json of a checkpoint's run, or the checkpoint's copy if that is missing; None when neither exists.

    Raises:
        UserError: when neither can be read.
    """
    path, own = checkpoint.parent / RUN_RECORD_NAME, checkpoint / RUN_RECORD_NAME
    found = read_record_file(path, needs=needs) if path.is_file() else ""
    if isinstance(found, str) and own.is_file():
        if path.is_file():
            _warn_once(f"{path}: {found}; using its copy {own}")
        path, found = own, read_record_file(own, needs=needs)
    if not isinstance(found, str):
        return found
    if not path.is_file():
        return None
    raise UserError(f"{path}: {found}; restore it from a backup")


def recorded_data(checkpoint: Path | None) -> list[dict[str, Any]] | None:
    """The block stores and shares with which a checkpoint was saved; None without a checkpoint.

    run.json of its folder lists those of the last start, which may have saved nothing.
    """
    if checkpoint is None:
        return None
    own = read_record_file(checkpoint / RUN_RECORD_NAME)  # earlier versions wrote none
    record = read_run_record(checkpoint.parent) if isinstance(own, str) else own
    return record.get("identity", {}).get("data", [])


def read_record_file(path: Path, *, needs: Collection[str] = ()) -> dict[str, Any] | str:
    """The content of one file, or what is wrong with it."""
    try:
        record = _with_current_names(parse_json(path.read_bytes()))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError as error:
        return f"is damaged ({error})"
    problem = type_problem(record, SCHEMA)
    missing = [] if problem else [name for name in needs if _lacks(record, name.split("."))]
    if missing:
        problem = f"{missing[0]} is missing"
    return f"is damaged ({problem})" if problem else record


def _with_current_names(record: Any) -> Any:
    """The record with the current names of its fields; other values are returned unchanged, for the type check."""
    if not isinstance(record, dict):
        return record
    return {name: _renamed(value) if name in ("identity", "arguments") else value for name, value in record.items()}


def _renamed(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    return {RENAMED_FIELDS.get(name, name): value for name, value in fields.items()}


def _lacks(value: Any, names: Sequence[str]) -> bool:
    return bool(names) and (not isinstance(value, dict) or names[0] not in value or _lacks(value[names[0]], names[1:]))


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
