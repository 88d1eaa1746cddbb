"""What is compiled together, how the types of its functions are written, and the file that holds the result.

The types are annotations of the functions: `int` (64 bits), `float`, one-dimensional contiguous NumPy arrays as
`NDArray[np.uint8]`, and NamedTuples of these. A compiled function returns an int.
"""

import hashlib
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from pretraining.system.files import cache_dir

CPU_VARIABLES = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")  # Numba's own; another CPU than this one, e.g. generic
COMPILER_PACKAGES = ("numba", "llvmlite")
# What distinguishes CPUs in /proc/cpuinfo, on x86 and on ARM.
CPU_FIELDS = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU implementer", "CPU part", "Features")


class CompiledError(Exception):
    """Why compiled functions cannot be used, in one line."""


@dataclass(frozen=True)
class CompiledUnit:
    """Modules whose functions are compiled together; only `entries` are called from outside.

    The modules are named in the order of their imports. They import NumPy and each other only, and have no state.
    """

    modules: tuple[str, ...]
    entries: tuple[str, ...]

    def sources(self) -> list[Path]:
        """The files of the modules, which are not imported."""
        specs = [importlib.util.find_spec(name) for name in self.modules]
        return [Path(spec.origin) for spec in specs if spec is not None and spec.origin is not None]

    def cache_path(self) -> Path:
        """Where the compiled functions of this source, this compiler and this CPU are.

        Raises:
            CompiledError: when Numba is not installed.
            UserError: when this user has no home folder.
        """
        try:
            versions = [*map(version, COMPILER_PACKAGES), platform.python_version(), np.__version__]
        except PackageNotFoundError as error:
            raise CompiledError(f"{error.name} is not installed; pip install -r requirements.txt") from None
        digest = hashlib.sha256(json.dumps([versions, self.entries, describe_cpu()]).encode())
        for path in [*self.sources(), *sorted(Path(__file__).parent.glob("*.py"))]:
            digest.update(path.read_bytes())
        name = self.modules[-1].rpartition(".")[2]
        return cache_dir() / "pretraining" / "compiled" / f"{name}-{digest.hexdigest()[:32]}"


def describe_cpu() -> list[str]:
    """What the machine code depends on."""
    chosen = [os.environ.get(name, "") for name in CPU_VARIABLES]
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    return [*chosen, sys.platform, platform.machine(), *(line for line in lines if line.startswith(CPU_FIELDS))]


def parameters(function: Callable[..., Any]) -> list[Any]:
    """The annotations of the arguments of a function."""
    hints = get_type_hints(function)
    return [hint for name, hint in hints.items() if name != "return"]


def fields(annotation: Any) -> list[Any] | None:
    """The annotations of the fields of a NamedTuple; None for anything else."""
    is_tuple = isinstance(annotation, type) and issubclass(annotation, tuple)
    return list(get_type_hints(annotation).values()) if is_tuple else None


def layout(function: Callable[..., Any]) -> str:
    """The arguments of a function with their fields and types, on which it and its callers must agree.

    >>> def add(first: int, second: NDArray[np.uint8]) -> int: ...
    >>> layout(add)
    'first:int second:uint8'
    """
    hints = get_type_hints(function)
    return " ".join(_described(name, hint) for name, hint in hints.items() if name != "return")


def _described(name: str, annotation: Any) -> str:
    if fields(annotation) is None:
        return f"{name}:{element_dtype(annotation) or annotation.__name__}"
    return f"{name}({' '.join(_described(*field) for field in get_type_hints(annotation).items())})"


def element_dtype(annotation: Any) -> np.dtype | None:
    """The type of the elements of an array by its annotation; None for anything else."""
    if get_origin(annotation) is not np.ndarray:
        return None
    (scalar,) = get_args(get_args(annotation)[1])
    return np.dtype(scalar)


def flattened(annotations: list[Any]) -> Iterator[Any]:
    """Annotations with those of the fields in the place of a NamedTuple."""
    for annotation in annotations:
        inner = fields(annotation)
        if inner is None:
            yield annotation
        else:
            yield from flattened(inner)
