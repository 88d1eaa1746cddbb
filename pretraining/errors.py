"""What a user can correct. Imports nothing of this project, so that every package may raise it."""

import difflib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

CRASH_EXIT_CODE = 1
USER_ERROR_EXIT_CODE = 2
TARGET_MISSED_EXIT_CODE = 3  # the run is complete, and its loss is not below --target_loss
STOPPED_EXIT_CODE = os.EX_TEMPFAIL  # 75: run the same command again, later
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells report it

SHOWN_CHARACTERS = 80  # of a rejected value

PANIC = "PanicException"  # of libraries in Rust, e.g. `tokenizers`; it is not an Exception, and has no module to import
MAX_REASON_CHARACTERS = 300


class UserError(ValueError):
    """A mistake the user can correct: each problem names the flag or file, the value found and the remedy."""

    def __init__(self, *problems: str, exit_code: int = USER_ERROR_EXIT_CODE) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.exit_code = exit_code  # another one where a process of another machine crashed


def raise_problems(problems: Iterable[str]) -> None:
    """Raise a `UserError` with all of them, if there are any."""
    if problems := tuple(problems):
        raise UserError(*problems)


@contextmanager
def reading(place: str, *, remedy: str) -> Iterator[None]:
    """Make one line of whatever a damaged or forged file leads to, in this project or in a library.

    Raises:
        UserError: in place of any other error, panics included.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS] or type(error).__name__
        raise UserError(f"{place} cannot be read ({reason}); {remedy}") from None


def shortened(text: str) -> str:
    """A value for a message; nobody reads 400 digits."""
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def nearest(word: str, words: Iterable[str]) -> str:
    """`" (did you mean X?)"` for the most similar of `words`, or nothing."""
    matches = difflib.get_close_matches(word[:SHOWN_CHARACTERS], list(words), n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""
