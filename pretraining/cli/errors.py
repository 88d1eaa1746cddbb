"""What a user can mend, told in one line, and the frame that every program runs in."""

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from pretraining.cli.launchers import process_rank
from pretraining.cli.logs import setup_logging

logger = logging.getLogger(__name__)

USER_ERROR_EXIT_CODE = 2
FIRST_RANK_SPEAKS_SECONDS = 5.0  # launchers look after their processes once a second
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, what shells expect


class UserError(ValueError):
    """A mistake the user can mend: the message names the flag or file, the value found and the remedy."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def run_program(main: Callable[[Sequence[str]], None]) -> None:
    """Run `main` on the command line; a `UserError` becomes one line for each problem and exit code 2."""
    setup_logging()
    try:
        main(sys.argv[1:])
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        _report(error)
        leave(USER_ERROR_EXIT_CODE)
    except KeyboardInterrupt:
        logger.warning("interrupted")
        leave(INTERRUPTED_EXIT_CODE)


def _report(error: UserError) -> None:
    # Most mistakes are found by every rank, and the first one's exit makes the launcher end the others meanwhile.
    if process_rank() > 0:
        time.sleep(FIRST_RANK_SPEAKS_SECONDS)
    for problem in error.problems:
        logger.error(problem)


def leave(exit_code: int) -> NoReturn:
    """End this process without taking Python down around the threads of a process group.

    They would wait for ranks that are leaving as well; and a gloo thread that drops its last tensor while Python goes
    down aborts the process after all is done (torch 2.13: 1 of 8 runs of two ranks ended with SIGABRT).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(exit_code)
