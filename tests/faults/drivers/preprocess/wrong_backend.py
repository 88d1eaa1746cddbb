"""Runs preprocess.py with a fast backend that passes its probe and is wrong for texts with a certain word."""

import runpy
import sys
from pathlib import Path

PROJECT_DIR = Path(__file__).parents[4]
sys.path.insert(0, str(PROJECT_DIR))

from pretraining.data.tokenize.backends import FastTokensBackend, FlatIds  # noqa: E402 - after the path

real_encode = FastTokensBackend.encode


def encode(self: FastTokensBackend, texts: list[str]) -> FlatIds:
    flat = real_encode(self, texts)
    return FlatIds(flat.ids + any("needle" in text for text in texts), flat.lengths)


FastTokensBackend.encode = encode  # type: ignore[method-assign]
sys.argv[0] = str(PROJECT_DIR / "preprocess.py")
runpy.run_path(sys.argv[0], run_name="__main__")
