"""Find everything that is wrong with a checkpoint or an exported model, file by file.

The files of a checkpoint are compared with complete.json. An exported model has no recorded checksums: its weights must
be where the header of their file and the index place them, and finite.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pretraining.cli.logs import counted
from pretraining.cli.progress import map_with_progress
from pretraining.runs.checksums import COMPLETE_NAME, file_problem, listed_files
from pretraining.runs.untrusted import MODEL_INDEX_NAME

FLOAT_TYPES = ("F16", "BF16", "F32", "F64")  # as safetensors calls them
CHUNK_ITEMS = 1 << 22  # of a tensor that are checked at once: 16 MB of fp32
NUM_NAMED = 3  # tensors with NaN or infinity, of each file


def checkpoint_problems(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint; reads every byte at 5 GB/s per core."""
    files = listed_files(checkpoint)
    if isinstance(files, str):
        return [files]
    sized = [(file, file["num_bytes"]) for file in files]
    checks = map_with_progress(partial(file_problem, checkpoint), sized, f"checking {checkpoint.name}")
    extra = _extra_files(checkpoint, {file["path"] for file in files})
    return [problem for _, problem in checks if problem is not None] + [
        f"{path} is extra: {COMPLETE_NAME} does not list it" for path in extra
    ]


def _extra_files(checkpoint: Path, listed: set[str]) -> list[str]:
    paths = {path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file()}
    shown = {path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)}
    return sorted(shown - listed - {COMPLETE_NAME})


def model_problems(model_dir: Path) -> list[str]:
    """What is wrong with an exported model, as far as its files show; reads every byte of its weights."""
    problems: list[str] = []
    files: dict[str, str] = {}  # by the name of the tensor
    paths = sorted(model_dir.glob("*.safetensors"))
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as file:  # which checks the header against the size of the file
                files |= dict.fromkeys(file.keys(), path.name)
        except (OSError, SafetensorError) as error:
            problems.append(f"{path.name} is damaged ({error})")
    for path in sorted(model_dir.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{path.name} is damaged ({error})")
    if not (model_dir / "config.json").is_file():
        problems.append("config.json is missing")
    if not paths:
        problems.append("*.safetensors are missing")
    problems += [] if problems else _index_problems(model_dir, files)
    sound = [(path, path.stat().st_size) for path in paths if path.name in files.values()]
    checks = map_with_progress(_non_finite_problem, sound, f"checking {model_dir.name}")
    return problems + [problem for _, problem in checks if problem is not None]


def _index_problems(model_dir: Path, found: Mapping[str, str]) -> list[str]:
    index = model_dir / MODEL_INDEX_NAME
    if not index.is_file():
        return []
    try:
        expected = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (KeyError, TypeError, ValueError):
        return [f"{MODEL_INDEX_NAME} is damaged (it has no weight_map)"]
    missing = sorted(name for name, file in expected.items() if found.get(name) != file)
    extra = sorted(found.keys() - expected.keys())
    return [f"{name} is missing from {expected[name]}" for name in missing] + [
        f"{name} is extra: {MODEL_INDEX_NAME} does not list it" for name in extra
    ]


def _non_finite_problem(path: Path) -> str | None:
    with safe_open(path, framework="pt") as file:  # memory-mapped
        found = [name for name in sorted(file.keys()) if not _is_finite(file, name)]
    named = ", ".join(found[:NUM_NAMED]) + ", ..." * (len(found) > NUM_NAMED)
    return f"{path.name} is damaged: NaN or infinity in {counted(len(found), 'tensor')} ({named})" if found else None


def _is_finite(file: Any, name: str) -> bool:
    """Whether a tensor of an open safetensors file has neither NaN nor infinity."""
    if file.get_slice(name).get_dtype() not in FLOAT_TYPES:
        return True
    return all(bool(chunk.isfinite().all()) for chunk in file.get_tensor(name).flatten().split(CHUNK_ITEMS))
