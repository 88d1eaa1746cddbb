"""Errors of the Hub's client: which of them are retried, and what to show of the others."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import httpx2
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# RuntimeError: a file of an LFS or Xet upload; ValueError: metadata that the Hub rejects, a malformed name.
HUB_ERRORS = (OSError, httpx2.HTTPError, RuntimeError, ValueError)
# The client sends some requests only once, without Xet also a commit; these are the seconds between our tries.
WAIT_SECONDS = (1, 2, 4, 8)
UNREACHABLE = (httpx2.TransportError, OfflineModeIsEnabled)
RETRYABLE_STATUS = {408, 409, 412, 429, 500, 502, 503, 504}


def with_retries(attempt: Callable[[], Result]) -> Result:
    """Return what `attempt` returns; call it again after a transient error.

    Raises:
        Exception: the last error of the Hub, or the first that is not transient.
    """
    for wait_seconds in WAIT_SECONDS:
        try:
            return attempt()
        except HUB_ERRORS as error:
            if not _is_transient(error):
                raise
            logger.warning("%s; trying again in %d s", error_message(error), wait_seconds)
            time.sleep(wait_seconds)
    return attempt()


def _is_transient(error: BaseException) -> bool:
    status = status_of(error)
    if status is not None:
        return status in RETRYABLE_STATUS
    root = _root(error)
    # If the client cannot connect at all, it has retried for long enough itself.
    return isinstance(root, httpx2.TransportError) and not isinstance(root, httpx2.ConnectError)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the Hub's answer; None if it did not answer."""
    root = _root(error)
    return root.response.status_code if isinstance(root, HfHubHTTPError) else None


def error_message(error: BaseException) -> str:
    """One line: the status and the Hub's own message, without the request."""
    root = _root(error)
    if isinstance(root, HfHubHTTPError):
        words = f"{root.response.status_code} {root.server_message or root.response.reason_phrase}"
    else:
        words = f"{type(root).__name__}: {root}"
    return " ".join(words.split())


def read_problem(error: BaseException) -> str:
    """What happened when something was to be read from the Hub, and the remedy."""
    message, status, root = error_message(error), status_of(error), _root(error)
    if status == 404 or type(root) is RepositoryNotFoundError:  # 401 without a token
        return f"not found on the Hub ({message}); check the name, or log in with `hf auth login` if it is private"
    if status in (401, 403):
        return f"no access on the Hub ({message}); log in with `hf auth login`, and accept its terms if it has any"
    if status is not None:
        return f"the Hub failed ({message}); run the same command again later"
    if isinstance(root, (*UNREACHABLE, LocalEntryNotFoundError, ConnectionError)):
        return f"the Hub cannot be reached ({message}); check the network and run the same command again"
    if isinstance(error, OSError) and error.errno:
        return f"cannot be stored in the Hub's cache ({message}); fix that, or set HF_HOME to another folder"
    return f"cannot be read from the Hub ({message}); check the name, or run the same command again"


def _root(error: BaseException) -> BaseException:
    """The error of the connection or the Hub, which its clients wrap in others."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (HfHubHTTPError, *UNREACHABLE)):
            return cause
        cause = cause.__cause__
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
