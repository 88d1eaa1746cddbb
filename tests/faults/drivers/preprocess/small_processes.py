"""Runs preprocess.py, which makes slices in separate processes however small they are."""

import runpy
import sys
from pathlib import Path

PROJECT_DIR = Path(__file__).parents[4]
sys.path.insert(0, str(PROJECT_DIR))

from pretraining.data.build import processes  # noqa: E402 - after the path

if __name__ == "__main__":  # the processes import this module too
    processes.MIN_PROCESS_BYTES = 1
    sys.argv[0] = str(PROJECT_DIR / "preprocess.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
