"""Calls of machine code: what is refused before, and that other threads run meanwhile."""

import gc
import threading
import time
from pathlib import Path
from typing import NamedTuple, get_type_hints

import numpy as np
import pytest
from numpy.typing import NDArray

from pretraining.system.compiled.cache import load_compiled
from pretraining.system.compiled.library import CompiledLibrary, pack, unpack
from pretraining.system.compiled.unit import CompiledError
from tests.unit.system.compiled import sums
from tests.unit.system.compiled.conftest import UNIT


def test_a_cache_file_holds_what_was_put_there() -> None:
    content = pack({"a": ("symbol", "x:int")}, b"code\n\0")
    assert unpack(content) == ({"a": ("symbol", "x:int")}, b"code\n\0")
    for wrong in (content[:-1], content + b" ", b"", content.replace(b"symbol", b"simbol")):
        with pytest.raises(CompiledError, match="damaged"):
            unpack(wrong)


def test_machine_code_of_another_version_of_a_function_is_refused(made: Path) -> None:
    """The files are read again for the name of the cache file, after `git pull` other ones than were imported."""

    class Exchanged(NamedTuple):
        second: NDArray[np.int64]
        first: NDArray[np.int64]

    def swap(pair: Exchanged) -> int:
        return len(pair.first)

    hints = get_type_hints(sums.swap)
    assert [*get_type_hints(hints["pair"])] == ["first", "second"]
    swap.__annotations__["pair"] = Exchanged
    with pytest.raises(CompiledError, match="changed while it ran"):
        CompiledLibrary(made.read_bytes(), [swap])


def test_wrong_arguments_are_refused_before_the_call(made: Path) -> None:
    swap = load_compiled(UNIT)["swap"]
    right = np.arange(4)
    for wrong in (right.astype(np.int32), right[::2], right.reshape(2, 2)):
        with pytest.raises(TypeError, match="takes a contiguous array of int64"):
            swap(sums.Uniform(right, wrong))
    with pytest.raises(TypeError, match="takes 2 numbers and arrays, not 1"):
        swap(right)


def test_a_call_releases_the_lock_of_python(made: Path) -> None:
    library = load_compiled(UNIT)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (library["wait_long"](10**9), done.set()))
    thread.start()
    rounds = 0
    while not done.is_set():
        time.sleep(0.001)
        rounds += 1
    thread.join()
    assert rounds > 10


def test_a_function_outlives_the_library_that_it_came_from(made: Path) -> None:
    swap = load_compiled(UNIT)["swap"]
    for _ in range(3):
        gc.collect()
        load_compiled(UNIT)
    assert swap(sums.Uniform(np.arange(4), np.arange(4))) == 4
