"""Get the compiled functions of a unit: from the user's cache folder, or by compiling them once in another process.

The folder is `pretraining/compiled` in the cache of XDG. What is found there is executed, so it is used only if it
belongs to this user and nobody else can write to it. Everything that goes wrong is a `CompiledError` with its reason,
or one line of warning: callers have another way to the same result.
"""

import importlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretraining.errors import UserError
from pretraining.system.compiled.library import CompiledLibrary, unpack
from pretraining.system.compiled.unit import CompiledError, CompiledUnit
from pretraining.system.files import OTHERS, write_atomically
from pretraining.system.locks import wait_for_lock

COMPILER = "pretraining.system.compiled.compiler"
MAX_COMPILE_SECONDS = 180  # it takes 5 to 15 seconds of one core

logger = logging.getLogger(__name__)


def load_compiled(unit: CompiledUnit) -> CompiledLibrary:
    """The functions of a unit; compiles them if the cache does not have them.

    Raises:
        CompiledError: when that is not possible, e.g. because Numba is not installed.
    """
    return BackgroundLibrary(unit).wait()


def is_cached(unit: CompiledUnit) -> bool:
    """Whether the functions can be loaded in a moment: 0.1 to 0.2 s, most of them for LLVM itself."""
    try:
        return _trusted_content(unit.cache_path()) is not None
    except (CompiledError, UserError, OSError):
        return False


class StoppedError(CompiledError):
    """The program ends before its functions are compiled."""


class BackgroundLibrary:
    """The functions of a unit, loaded or compiled by a separate thread."""

    def __init__(self, unit: CompiledUnit) -> None:
        self._unit = unit
        self._library: CompiledLibrary | None = None
        self._compiler: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self.problem: str | None = None  # why there are no compiled functions, and will be none
        self._thread = threading.Thread(target=self._load, name="load compiled functions", daemon=True)
        self._thread.start()

    @property
    def library(self) -> CompiledLibrary | None:
        """The functions, as soon as they are there."""
        return self._library

    def wait(self) -> CompiledLibrary:
        """The functions, after a compilation if necessary.

        Raises:
            CompiledError: when they cannot be had; StoppedError when the program ends.
        """
        self._thread.join()
        if self._is_closed:
            raise StoppedError("the program ends")
        if self._library is None:
            raise CompiledError(self.problem or "for an unknown reason")
        return self._library

    def close(self) -> None:
        """End the compiler if it is still at work; waits for nothing, as another process may hold the lock."""
        self._is_closed = True
        if self._compiler is not None:
            self._compiler.kill()

    def _load(self) -> None:
        try:
            self._library = CompiledLibrary(self._content(), self._functions())
        except (CompiledError, UserError, OSError, ImportError) as error:
            self.problem = _one_line(error)

    def _functions(self) -> list[Callable[..., int]]:
        modules = [importlib.import_module(name) for name in self._unit.modules]
        found = {name: value for module in modules for name, value in vars(module).items()}
        return [found[entry] for entry in self._unit.entries]

    def _content(self) -> bytes:
        path = self._unit.cache_path()
        content = _trusted_content(path)
        if content is not None:
            return content
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with wait_for_lock(path.with_name(f"{path.name}.lock")):  # one process compiles, the others wait
                content = _trusted_content(path)
                if content is not None:
                    return content
                content = self._compile()
                write_atomically(path, content)
                return content
        except OSError as error:
            logger.warning(
                "%s: compiled functions cannot be kept there (%s), so each start compiles them again; fix its "
                "permissions, or set XDG_CACHE_HOME to another folder",
                path.parent,
                error.strerror,
            )
        return content or self._compile()

    def _compile(self) -> bytes:
        words = [sys.executable, "-m", COMPILER, ",".join(self._unit.modules), ",".join(self._unit.entries)]
        environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._compiler = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        if self._is_closed:
            self._compiler.kill()
        try:
            content, errors = self._compiler.communicate(timeout=MAX_COMPILE_SECONDS)
        except subprocess.TimeoutExpired:
            self._compiler.kill()
            self._compiler.communicate()
            raise CompiledError(f"the compiler took more than {MAX_COMPILE_SECONDS} s") from None
        if self._compiler.returncode:
            lines = errors.decode(errors="replace").strip().splitlines() or ["without a message"]
            raise CompiledError(f"the compiler ended with status {self._compiler.returncode}: {lines[-1]}")
        unpack(content)
        return content


def _trusted_content(path: Path) -> bytes | None:
    """The content of a cache file; None if there is none that can be used."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    found = path.parent.stat()
    if found.st_uid != os.getuid() or found.st_mode & OTHERS:
        raise CompiledError(f"{path.parent}: other users can open it; remove it, or set XDG_CACHE_HOME")
    try:
        unpack(content)
    except CompiledError as error:
        logger.warning("%s: compiling again (%s)", path, error)
        return None
    return content


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
