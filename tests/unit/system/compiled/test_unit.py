"""Annotations as types, and the name of a cache file."""

from pathlib import Path

import numpy as np
import pytest

from pretraining.system.compiled.unit import CompiledUnit, element_dtype, fields, flattened, parameters
from tests.unit.system.compiled import sums
from tests.unit.system.compiled.conftest import UNIT


def test_a_named_tuple_stands_for_its_fields() -> None:
    flat = list(flattened(parameters(sums.weigh)))
    assert [element_dtype(each) for each in flat] == [np.uint8, np.int64, np.float64, None, None]
    assert flat[3:] == [float, int]
    assert fields(int) is None


def test_the_name_depends_on_sources_entries_and_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert UNIT.sources() == [Path(sums.__file__)]
    paths = {UNIT.cache_path(), UNIT.cache_path()}
    assert len(paths) == 1
    paths.add(CompiledUnit(UNIT.modules, ("weigh",)).cache_path())
    paths.add(CompiledUnit((*UNIT.modules, "tests.unit.system.compiled.conftest"), UNIT.entries).cache_path())
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "+sse2")
    paths.add(UNIT.cache_path())
    assert len(paths) == 4
