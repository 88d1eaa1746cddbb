"""Compare two runs, bit for bit or within a tolerance: losses, gradient norms, evaluations and exported weights."""

import filecmp
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pretraining.runs.history import read_records
from pretraining.runs.run_folder import METRICS_NAME, MODEL_DIR_NAME
from pretraining.runs.tracking.metrics_file import TASK_PREFIX, describe_part

TRAINING_METRICS = ("loss", "smoothed_loss", "accuracy", "grad_norm", "learning_rate", "tokens")
# On a GPU the backward pass of attention adds with atomics, in another order each time, so that two runs of the same
# command differ in the last bits. A share of each loss, norm and evaluation; resumed runs of six steps on an H200 were
# within it.
GPU_TOLERANCE = 1e-3
TIMINGS = ("runtime", "per_second")
# What a record is about, by the beginning of the names of its metrics.
KINDS = {"": "step", "eval_": "validation at step", "test_": "test at step"}


def first_difference(run_dir: Path, other: Path, *, relative: float = 0.0) -> str | None:
    """The first difference between two runs and its size, None if there is none.

    Each step must be in the second log once. An evaluation that was repeated after a resume must be the same each time.
    Metrics may differ by the share `relative`. Weights are compared bit by bit if that is 0, otherwise by their names,
    types and shapes: rounding that differs at each step moves single weights by any share.
    """
    difference = difference_of_metrics(run_dir, other, relative=relative)
    if difference is not None:
        return difference
    return difference_of_weights(run_dir / MODEL_DIR_NAME, other / MODEL_DIR_NAME, only_shapes=relative > 0)


def difference_of_metrics(run_dir: Path, other: Path, *, relative: float = 0.0) -> str | None:
    """The first place in the second log whose metrics differ, or else the first that it lacks or has too often."""
    expected, found = dict(read_metrics(run_dir)), list(read_metrics(other))
    for place, metrics in found:
        if place not in expected:
            return f"{place} is not in {run_dir / METRICS_NAME}"
        for name in expected[place] | metrics:
            values = expected[place].get(name), metrics.get(name)
            if not _are_equal(*values, relative=relative):
                return f"{place}: {name} {values[0]} and {values[1]}{_relative_difference(*values)}"
    counts = Counter(place for place, _ in found)
    for place in expected:
        if counts[place] == 0 or (counts[place] > 1 and place.startswith("step ")):
            return f"{place} is {counts[place]} times in {other / METRICS_NAME}"
    return None


def read_metrics(run_dir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The metrics of each step and each evaluation, without times and speeds."""
    for record in read_records(run_dir):
        for prefix, kind in KINDS.items():
            if f"{prefix}loss" in record:
                part = describe_part(record, prefix.removesuffix("_"))
                yield f"{kind} {record['step']}{part}", _without_timings(record, prefix)


def _without_timings(record: dict[str, Any], prefix: str) -> dict[str, Any]:
    if not prefix:
        return {name: record[name] for name in TRAINING_METRICS if name in record}
    prefixes = (prefix, TASK_PREFIX)  # and not task_seconds
    names = (name for name in record if name.startswith(prefixes) and not any(word in name for word in TIMINGS))
    return {name: record[name] for name in names}


def _are_equal(first: Any, second: Any, *, relative: float) -> bool:
    """Whether two metrics are equal; floats may differ by a share of the larger one."""
    if relative and isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=relative)
    return first == second


def _relative_difference(first: Any, second: Any) -> str:
    if not isinstance(first, float) or not isinstance(second, float):
        return ""
    return f", relative difference {abs(first - second) / max(abs(first), 1e-300):.1e}"


def difference_of_weights(model_dir: Path, other: Path, *, only_shapes: bool = False) -> str | None:
    """The first file in which two exported models differ, or their tensors do in name, type or shape."""
    names = [sorted(path.name for path in folder.glob("*.safetensors")) for folder in (model_dir, other)]
    if names[0] != names[1] or not names[0]:
        return f"{other} has the files {', '.join(names[1]) or 'none'}, not {', '.join(names[0]) or 'none'}"
    if only_shapes:
        different = [name for name in names[0] if tensor_shapes(model_dir / name) != tensor_shapes(other / name)]
        return f"{other / different[0]} has other tensors" if different else None
    different = [name for name in names[0] if not filecmp.cmp(model_dir / name, other / name, shallow=False)]
    return f"{other / different[0]} has other weights" if different else None


def tensor_shapes(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Type and shape of each tensor of a safetensors file, by name."""
    with safe_open(path, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    return {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
