"""The rooms that preprocess.py, pretrain.py, generate.py and train_tokenizer.py share, in six wings."""

import sys
from types import TracebackType


def _report_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does, but without the traceback of Ctrl-C during the imports, before a program can handle it."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _report_crash
