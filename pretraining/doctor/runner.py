"""Run each check in a process of its own, so that none can end the doctor or hold it up.

What a check found before it failed or was cut off is kept. A check has the seconds of its own limit, and never more
than are left of the doctor's; nothing waits for a process that was killed, since one that hangs in a dead network
disk cannot even be killed.
"""

import contextlib
import dataclasses
import importlib
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from pretraining.doctor.checks import Check
from pretraining.doctor.finding import Finding, warning
from pretraining.doctor.software.packages import INSTALL

TOTAL_SECONDS = 57.0  # of 60: Python's own start and end come on top
GRACE_SECONDS = 1.0  # a check that its parent did not end, since that was killed, ends itself after this
LEAST_SECONDS = 0.3
REASON_CHARACTERS = 160
RETRY = "python3 -m tools.doctor"


def run_checks(
    checks: Sequence[Check], folders: Sequence[Path], *, total_seconds: float = TOTAL_SECONDS
) -> Iterator[Finding]:
    """Findings of all checks, each as soon as it is there; `folders` are what the disk's checks look at."""
    ends_at = time.monotonic() + total_seconds
    for check in checks:
        seconds = min(check.limit_seconds, ends_at - time.monotonic())
        if seconds < LEAST_SECONDS:
            yield _unchecked(check, f"no time left of {total_seconds:.0f} s")
        else:
            yield from _run_check(check, folders, seconds)


def _run_check(check: Check, folders: Sequence[Path], limit_seconds: float) -> Iterator[Finding]:
    # fork: the parent is light and has no threads, so a process costs milliseconds.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    began_at = time.monotonic()
    process = context.Process(target=_check_alone, args=(check, folders, sender, limit_seconds), daemon=True)
    process.start()
    sender.close()
    try:
        while (finding := _receive(receiver, began_at + limit_seconds)) is not None:
            yield finding
    except TimeoutError:
        yield _unchecked(check, f"no answer within {limit_seconds:.0f} s", seconds=limit_seconds)
    except EOFError:
        process.join(GRACE_SECONDS)
        yield _unchecked(check, f"its process ended with {process.exitcode}", seconds=time.monotonic() - began_at)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # what it started has its group
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.join(GRACE_SECONDS)


def _receive(receiver: Connection, ends_at: float) -> Finding | None:
    """The next finding, None after the last.

    Raises:
        TimeoutError: when there is none in time.
        EOFError: when the process ended before it was done.
    """
    if not receiver.poll(max(0.0, ends_at - time.monotonic())):
        raise TimeoutError
    message = receiver.recv()
    return None if message is None else Finding(**message)


def _check_alone(check: Check, folders: Sequence[Path], sender: Connection, limit_seconds: float) -> None:
    """The check's own process: libraries may say what they like, findings go through the pipe."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.alarm(math.ceil(limit_seconds + GRACE_SECONDS))
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    began_at = time.monotonic()
    for finding in _guarded(check, folders):
        now = time.monotonic()
        sender.send(dataclasses.asdict(dataclasses.replace(finding, group=check.group, seconds=now - began_at)))
        began_at = now
    sender.send(None)


def _guarded(check: Check, folders: Sequence[Path]) -> Iterator[Finding]:
    """The check's findings; an error becomes one of them."""
    try:
        room = importlib.import_module(f"pretraining.doctor.{check.room}")
        yield from getattr(room, check.function)(folders)
    except BaseException as error:  # a library may even want to end the process
        yield _unchecked(check, reason(error), fix=INSTALL if isinstance(error, ImportError) else RETRY)


def reason(error: BaseException) -> str:
    """An error in one short line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= REASON_CHARACTERS else text[: REASON_CHARACTERS - 1] + "…"


def _unchecked(check: Check, why: str, *, seconds: float = 0.0, fix: str = RETRY) -> Finding:
    finding = warning(check.name, f"could not be checked ({why})", fix)
    return dataclasses.replace(finding, group=check.group, seconds=seconds)
