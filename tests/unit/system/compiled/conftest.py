"""A cache of compiled functions for each test, and the functions that the tests compile."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pretraining.system.compiled.cache import is_cached, load_compiled
from pretraining.system.compiled.unit import CompiledUnit
from tests.unit.system.compiled import sums

UNIT = CompiledUnit(("tests.unit.system.compiled.sums",), ("weigh", "swap", "wait_long"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pretraining/compiled"


def cached_files(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.suffix != ".lock"]


def assert_works() -> None:
    library = load_compiled(UNIT)
    data = np.frombuffer(bytes(range(256)), np.uint8)
    results = []
    for weigh in (library["weigh"], sums.weigh):
        tables = sums.Tables(np.arange(16) ** 2, np.zeros(256))
        with np.errstate(over="ignore"):
            results.append((weigh(data, tables, 0.5, 7), tables.totals.tolist()))
    assert results[0] == results[1]
    assert results[0][0] > 1000
    pair = sums.Uniform(np.arange(3), np.arange(3) * 10)
    assert library["swap"](pair) == 3
    assert [each.tolist() for each in pair] == [[0, 10, 20], [0, 1, 2]]


@pytest.fixture(scope="session")
def first_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder after a first start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        assert not is_cached(UNIT)
        assert_works()
        assert is_cached(UNIT)
    return folder


@pytest.fixture
def made(first_start: Path, cache: Path) -> Path:
    """The cache file of a first start, in a folder of this test."""
    shutil.copytree(first_start, cache.parent.parent, dirs_exist_ok=True)
    (path,) = cached_files(cache)
    return path
