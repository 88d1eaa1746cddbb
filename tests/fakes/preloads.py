"""Libraries in C that are preloaded into whole programs; tests skip where there is no C compiler."""

import shutil
import subprocess
from pathlib import Path

import pytest


def compiled(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of a source in this folder."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: neither cc nor gcc is installed")
    library = tmp_path_factory.mktemp("preload") / f"{source}.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", library, Path(__file__).with_name(source), "-ldl"], check=True
    )
    return library
