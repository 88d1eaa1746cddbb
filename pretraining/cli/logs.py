"""One logger for all programs: the first rank speaks at INFO, the others only when something is wrong."""

import logging
import sys
import traceback
from types import TracebackType

from pretraining.cli.launchers import process_rank
from pretraining.system.escapes import LAYOUT, escape
from pretraining.system.privacy import mask

# `extra` of a warning of which there is an event in metrics.jsonl besides, so that it needs none as a warning.
HAS_EVENT = {"has_event": True}

# torchao, which transformers imports where it is there, warns of kernels that it does without, and torch of torchao.
UNASKED_LOGGERS = ("torchao", "torch.utils._pytree")


class _Formatter(logging.Formatter):
    """Plain text for information; a word in front of whatever needs attention.

    A record is one line whatever names, texts and answers of servers it quotes, and shows no secret.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = escape(mask(record.getMessage()))
        if record.levelno > logging.INFO:
            message = f"{record.levelname.lower()}: {message}"
        if record.exc_info:
            message += "\n" + _shown_traceback(self.formatException(record.exc_info))
        return message


def setup_logging() -> None:
    """Send the package's log to stderr, so that stdout stays free for generated text.

    Tracebacks go there too, without what could act on a terminal.
    """
    for name in UNASKED_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    package_logger = logging.getLogger("pretraining")
    package_logger.handlers = [handler]
    package_logger.propagate = False
    # Ranks check the same things, so a warning of one is a warning of all; an error can be a rank's own.
    package_logger.setLevel(logging.INFO if process_rank() == 0 else logging.ERROR)
    sys.excepthook = _show_crash


def _show_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own traceback, in which messages can quote anything."""
    sys.stderr.write(_shown_traceback("".join(traceback.format_exception(kind, error, trace))))


def _shown_traceback(text: str) -> str:
    return escape(mask(text), keep=LAYOUT)
