"""Start a tool of a Megatron-LM checkout: megatron.py OUTPUT_DIR TOOL FLAGS.

Its checkout asks for Python 3.12 on account of typing.override alone, as far as its tools for preprocessing go.
"""

import runpy
import sys
import typing
from pathlib import Path

import typing_extensions

if sys.version_info < (3, 12):
    typing.override = typing_extensions.override  # type: ignore[attr-defined]

if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True)
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
