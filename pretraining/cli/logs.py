"""One logger for all programs: the first rank speaks at INFO, the others only when something is wrong."""

import logging
import sys

from pretraining.cli.launchers import process_rank

# `extra` of a warning of which there is an event in metrics.jsonl besides, so that it needs none as a warning.
HAS_EVENT = {"has_event": True}

# torchao, which transformers imports where it is there, warns of kernels that it does without, and torch of torchao.
UNASKED_LOGGERS = ("torchao", "torch.utils._pytree")


class _Formatter(logging.Formatter):
    """Plain text for information; a word in front of whatever needs attention."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {message}"


def setup_logging() -> None:
    """Send the package's log to stderr, so that stdout stays free for generated text."""
    for name in UNASKED_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    package_logger = logging.getLogger("pretraining")
    package_logger.handlers = [handler]
    package_logger.propagate = False
    # Ranks check the same things, so a warning of one is a warning of all; an error can be a rank's own.
    package_logger.setLevel(logging.INFO if process_rank() == 0 else logging.ERROR)
