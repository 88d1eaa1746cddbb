"""Runs preprocess.py with compiled loops whose tables have a token for a character that is not in the vocabulary."""

import runpy
import sys
from pathlib import Path

PROJECT_DIR = Path(__file__).parents[4]
sys.path.insert(0, str(PROJECT_DIR))

from pretraining.data.tokenize import compiled_backend  # noqa: E402 - after the path
from pretraining.data.tokenize.bpe_merges import BpeTables  # noqa: E402

real_build_tables = compiled_backend.build_tables


def build_tables(*arguments: object) -> BpeTables:
    tables = real_build_tables(*arguments)
    tables.character_ids[ord("¤")] = 7
    return tables


compiled_backend.build_tables = build_tables
sys.argv[0] = str(PROJECT_DIR / "preprocess.py")
runpy.run_path(sys.argv[0], run_name="__main__")
