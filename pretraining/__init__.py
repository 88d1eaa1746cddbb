"""The packages that the programs share; docs/explanation/architecture.md shows how they depend on each other."""

import sys
from pathlib import Path
from types import TracebackType


def _report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does, but without the traceback of Ctrl-C during the imports, before a program can handle it."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report_crash
PROJECT_DIR = Path(__file__).parents[1]
