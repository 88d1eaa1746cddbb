"""The library that makes a disk odd, compiled once."""

from pathlib import Path

import pytest

from tests.fakes.preloads import compiled


@pytest.fixture(scope="session")
def odd_disk_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("odd_disk.c", tmp_path_factory)
