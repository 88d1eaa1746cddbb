"""Runs preprocess.py with compiled loops that read the last byte of some texts wrong."""

import runpy
import sys
from pathlib import Path
from typing import Any

PROJECT_DIR = Path(__file__).parents[4]
sys.path.insert(0, str(PROJECT_DIR))

from pretraining.data.encode.line_encoder import LineEncoder  # noqa: E402 - after the path

real_read = LineEncoder._read


def read(encoder: LineEncoder, lines: Any, texts: Any, compiled: Any) -> Any:
    skipped = real_read(encoder, lines, texts, compiled)
    texts.data[texts.ends[texts.ends % 3 == 0] - 1] = ord("?")
    return skipped


LineEncoder._read = read  # type: ignore[method-assign]
sys.argv[0] = str(PROJECT_DIR / "preprocess.py")
runpy.run_path(sys.argv[0], run_name="__main__")
