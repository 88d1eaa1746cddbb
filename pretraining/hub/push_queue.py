"""Pushes while the training goes on: in a thread, again and again until they are through, the newest first.

The Trainer's own background push loses them without a word: it skips those that come while another lasts, its folder
may be rotated away meanwhile, and nobody looks at what became of it (transformers 5.23).
"""

import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.hub.retry import error_message

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 300.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parcel:
    """What goes to the Hub in one commit: a folder that nobody else needs, and patterns of what it replaces there."""

    step: int
    what: str
    folder: Path
    replaces: Sequence[str]

    def remove(self) -> None:
        """Free the room on the disk that only it still takes."""
        shutil.rmtree(self.folder, ignore_errors=True)


class PushQueue:
    """Holds one parcel that waits; a newer one takes its place, as what the Hub is to have is the newest.

    `push` sends a parcel, in a thread, and raises where it does not arrive; `tell_problem` hears why, and whether it
    has been given up.
    """

    def __init__(self, push: Callable[[Parcel], None], tell_problem: Callable[[Parcel, str, bool], None]) -> None:
        self._push = push
        self._tell_problem = tell_problem
        self._changed = threading.Condition()
        self._waiting: Parcel | None = None
        self._in_flight: Parcel | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None

    @property
    def unfinished(self) -> list[Parcel]:
        """What is under way or waits."""
        with self._changed:
            return [parcel for parcel in (self._in_flight, self._waiting) if parcel is not None]

    def put(self, parcel: Parcel) -> None:
        """Have a parcel pushed, in place of one that waits."""
        with self._changed:
            overtaken, self._waiting = self._waiting, parcel
            self._changed.notify()
        if overtaken is not None:
            self._overtake(overtaken, parcel)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="model-pusher", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Begin no other push, and wait for the end of the one that is under way."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (parcel := self._next()) is not None:
            self._deliver(parcel)

    def _next(self) -> Parcel | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._waiting is not None)
            if self._is_closed:
                return None
            self._in_flight, self._waiting = self._waiting, None
            return self._in_flight

    def _deliver(self, parcel: Parcel) -> None:
        """Push it, trying again with longer and longer pauses, until it is there or a newer one waits."""
        pause, said = FIRST_PAUSE_SECONDS, None
        while True:
            try:
                self._push(parcel)
            except Exception as error:  # whatever it is, the training goes on
                problem = error_message(error)
            else:
                break
            if problem != said:
                self._tell_problem(parcel, problem, False)
                said = problem
            with self._changed:
                if self._changed.wait_for(lambda: self._is_closed or self._waiting is not None, timeout=pause):
                    break
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        with self._changed:
            self._in_flight = None
        parcel.remove()

    def _overtake(self, parcel: Parcel, newer: Parcel) -> None:
        parcel.remove()
        self._tell_problem(parcel, f"overtaken by that of step {newer.step}", True)
