"""One logger for all programs: the first rank speaks at INFO, the others only when something is wrong."""

import logging
import sys
import traceback
from contextlib import suppress
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
            message += "\n" + _shown_traceback(record.exc_info[1]).rstrip("\n")
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


def _show_crash(_: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own traceback, in which messages can quote anything."""
    with suppress(OSError, ValueError, AttributeError):  # stderr is full, or was closed
        sys.stderr.write(_shown_traceback(error.with_traceback(trace)))


def _shown_traceback(error: BaseException | None) -> str:
    """A traceback as Python writes it, in which the lines of a message are indented, so that none forges another."""
    chunks = [] if error is None else traceback.format_exception(error)
    lines = []
    for chunk in chunks:
        text = escape(mask(chunk), keep=LAYOUT)
        is_message = not text.startswith((" ", "\n", "Traceback"))
        lines.append(text.rstrip("\n").replace("\n", "\n  ") + "\n" if is_message else text)
    return "".join(lines)
