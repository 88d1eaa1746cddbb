"""Find everything that is wrong with a checkpoint or an exported model, file by file.

The files of a checkpoint are compared with complete.json. An exported model has no recorded checksums: its weights must
be where the header of their file and the index place them, and finite.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from pretraining.cli.progress import Progress
from pretraining.runs.checksums import COMPLETE_NAME, file_problem, read_complete
from pretraining.system.cores import usable_cores

INDEX_NAME = "model.safetensors.index.json"
# For each dtype the unsigned integer of its size, and the exponent bits, which are all set in NaN and Inf.
EXPONENTS = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F80 << 16), "F64": ("<u8", 0x7FF << 52)}
CHUNK_ITEMS = 1 << 22  # 64 MB per core, with the results of the comparison
NUM_CORES = usable_cores()

T = TypeVar("T")


@dataclass(frozen=True)
class Weight:
    """A tensor in a safetensors file: `offset` is that of its first byte."""

    file: Path
    name: str
    dtype: str
    offset: int
    num_items: int
    num_bytes: int


def checkpoint_problems(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint; reads every byte at 5 GB/s per core."""
    try:
        files: list[Mapping[str, Any]] = read_complete(checkpoint)["files"]
    except FileNotFoundError:
        return [f"{COMPLETE_NAME} is missing: the save did not finish"]
    except (OSError, ValueError) as error:
        return [f"{COMPLETE_NAME} cannot be read ({error})"]
    sizes = [file["num_bytes"] for file in files]
    checks = _in_parallel(lambda file: file_problem(checkpoint, file), files, sizes, checkpoint.name)
    extra = _extra_files(checkpoint, {file["path"] for file in files})
    return [problem for problem in checks if problem is not None] + [
        f"{path} is extra: {COMPLETE_NAME} does not list it" for path in extra
    ]


def _extra_files(checkpoint: Path, listed: set[str]) -> list[str]:
    paths = {path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file()}
    shown = {path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)}
    return sorted(shown - listed - {COMPLETE_NAME})


def model_problems(model_dir: Path) -> list[str]:
    """What is wrong with an exported model, as far as its files show; reads every byte of its weights."""
    problems, weights = [], []
    for path in sorted(model_dir.glob("*.safetensors")):
        try:
            weights += read_header(path)
        except (OSError, ValueError, SafetensorError) as error:
            problems.append(f"{path.name} is damaged ({error})")
    for path in sorted(model_dir.glob("*.json")):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{path.name} is damaged ({error})")
    if not (model_dir / "config.json").is_file():
        problems.append("config.json is missing")
    if not any(model_dir.glob("*.safetensors")):
        problems.append("*.safetensors are missing")
    problems += [] if problems else _index_problems(model_dir, weights)
    sizes = [weight.num_bytes for weight in weights]
    checks = _in_parallel(_weight_problem, weights, sizes, model_dir.name)
    return problems + [problem for problem in checks if problem is not None]


def read_header(path: Path) -> list[Weight]:
    """The tensors of a safetensors file, whose offsets must cover it without a gap.

    Raises:
        SafetensorError: when they do not, or it is not such a file.
        OSError: when it cannot be read.
    """
    with safe_open(path, framework="numpy"):  # checks the header against the size of the file
        pass
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return [
        Weight(
            path,
            name,
            entry["dtype"],
            8 + length + entry["data_offsets"][0],
            math.prod(entry["shape"]),
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
    ]


def _index_problems(model_dir: Path, weights: list[Weight]) -> list[str]:
    index = model_dir / INDEX_NAME
    if not index.is_file():
        return []
    try:
        expected = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (KeyError, TypeError, ValueError):
        return [f"{INDEX_NAME} is damaged (it has no weight_map)"]
    found = {weight.name: weight.file.name for weight in weights}
    missing = sorted(name for name, file in expected.items() if found.get(name) != file)
    extra = sorted(found.keys() - expected.keys())
    return [f"{name} is missing from {expected[name]}" for name in missing] + [
        f"{name} is extra: {INDEX_NAME} does not list it" for name in extra
    ]


def _weight_problem(weight: Weight) -> str | None:
    if weight.dtype not in EXPONENTS or not weight.num_items:
        return None
    dtype, exponent = EXPONENTS[weight.dtype]
    bits = np.memmap(weight.file, dtype, mode="r", offset=weight.offset, shape=weight.num_items)
    for first in range(0, weight.num_items, CHUNK_ITEMS):
        chunk = bits[first : first + CHUNK_ITEMS]
        if ((chunk & chunk.dtype.type(exponent)) == exponent).any():
            return f"{weight.file.name} is damaged: {weight.name} has NaN or infinity"
    return None


def _in_parallel(
    check: Callable[[T], str | None], items: Iterable[T], sizes: Iterable[int], name: str
) -> Iterator[str | None]:
    sizes = list(sizes)
    with Progress(sum(sizes)) as progress, ThreadPoolExecutor(NUM_CORES) as executor:
        for size, problem in zip(sizes, executor.map(check, items), strict=True):
            progress.advance(size, f"checking {name}")
            yield problem
