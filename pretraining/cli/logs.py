"""One logger for all programs: rank 0 logs from INFO, the others errors only."""

import logging
import os
import re
import sys
import textwrap
import traceback
from contextlib import suppress
from types import TracebackType

from pretraining.system.escapes import LAYOUT, escape
from pretraining.system.launchers import process_rank
from pretraining.system.privacy import mask

# `extra` of a warning that is an event of metrics.jsonl already.
LOGGED_AS_EVENT = {"has_event": True}
# `extra` of a command or path to copy: one line, however long, which a terminal wraps without breaking the copy.
IN_ONE_LINE = {"in_one_line": True}
LINE_COLUMNS = 120  # without a terminal
UNIT_SPACE = re.compile(r"(?<=\d) (?=[%A-Za-z])")
FEW_COLUMNS = 80  # of a terminal that does not report its width

# torchao, which transformers imports if installed, warns about missing kernels, and torch about torchao.
NOISY_LOGGERS = ("torchao", "torch.utils._pytree")


class _Formatter(logging.Formatter):
    """Plain text for information; a word in front of whatever needs attention.

    A record shows no secret, and is one line whatever names, texts and answers of servers it quotes. Only information
    that is wider than a line is wrapped, its further lines indented; warnings and errors stay whole.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = escape(mask(record.getMessage()))
        if record.levelno > logging.INFO:
            message = f"{record.levelname.lower()}: {message}"
        elif not getattr(record, "in_one_line", False):
            message = wrapped(message, line_columns())
        if record.exc_info:
            message += "\n" + _shown_traceback(record.exc_info[1]).rstrip("\n")
        return message


def line_columns() -> int:
    """Columns of a line of the log: those of the terminal where stderr is one, otherwise 120."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or FEW_COLUMNS
    except (OSError, ValueError, AttributeError):  # not a terminal, or closed
        return LINE_COLUMNS


def wrapped(line: str, columns: int) -> str:
    r"""`line` in lines of `columns` at most, broken at spaces, but not between a number and its unit.

    A longer word, such as a path, stays whole.

    >>> wrapped("saved in 12 s, 40 % of the time", 10)
    'saved in\n    12 s,\n    40 %\n    of the\n    time'
    """
    if len(line) <= columns:
        return line
    joined = UNIT_SPACE.sub("\0", line)  # which no line has: `escape` has shown it as \x00
    folded = textwrap.fill(joined, columns, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return folded.replace("\0", " ")


def counted(number: int, noun: str) -> str:
    """A number of things, in the plural where they are not one.

    >>> [counted(1, "step"), counted(1_200, "step")]
    ['1 step', '1,200 steps']
    """
    return f"{number:,} {noun}" + "s" * (number != 1)


def setup_logging() -> None:
    """Send the package's log to stderr, so that stdout stays free for generated text.

    Tracebacks go there too, without what could act on a terminal.
    """
    for name in NOISY_LOGGERS:
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
