"""The library that makes a disk odd, compiled once."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("odd_disk.c")


@pytest.fixture(scope="session")
def odd_disk_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library; skips where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: neither cc nor gcc is installed")
    library = tmp_path_factory.mktemp("odd_disk") / "odd_disk.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library
