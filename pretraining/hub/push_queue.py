"""Pushes during training: in a thread, retried until they succeed, the newest first.

The Trainer's own background push loses uploads silently (transformers 5.23): it skips those that come while another is
running, rotation may delete the folder meanwhile, and no result is checked.
"""

import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pretraining.hub.retry import error_message

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 300.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UploadPayload:
    """One upload: a folder that nothing else uses, and patterns of the files that it replaces on the Hub."""

    step: int
    description: str
    folder: Path
    replaces: Sequence[str]

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class PushQueue:
    """Holds one payload that waits; a newer one supersedes it, since the Hub needs only the newest.

    `push` uploads a payload, in a thread, and raises if that fails. `report_problem` is called with the reason, and
    whether the payload was given up.
    """

    def __init__(
        self, push: Callable[[UploadPayload], None], report_problem: Callable[[UploadPayload, str, bool], None]
    ) -> None:
        self._push = push
        self._report_problem = report_problem
        self._changed = threading.Condition()
        self._waiting: UploadPayload | None = None
        self._in_flight: UploadPayload | None = None
        self._is_closed = False
        self._thread: threading.Thread | None = None

    @property
    def unfinished(self) -> list[UploadPayload]:
        """The payload that is being pushed and the one that waits."""
        with self._changed:
            return [payload for payload in (self._in_flight, self._waiting) if payload is not None]

    def put(self, payload: UploadPayload) -> None:
        """Push a payload, in place of one that waits."""
        with self._changed:
            superseded, self._waiting = self._waiting, payload
            self._changed.notify()
        if superseded is not None:
            superseded.remove()
            self._report_problem(superseded, f"superseded by that of step {payload.step}", True)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="model-pusher", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Start no other push, and wait for the one in flight."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (payload := self._next()) is not None:
            self._deliver(payload)

    def _next(self) -> UploadPayload | None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._waiting is not None)
            if self._is_closed:
                return None
            self._in_flight, self._waiting = self._waiting, None
            return self._in_flight

    def _deliver(self, payload: UploadPayload) -> None:
        """Push it, with growing pauses between retries, until it arrives or a newer one waits."""
        pause, reported = FIRST_PAUSE_SECONDS, None
        while True:
            try:
                self._push(payload)
            except Exception as error:  # whatever it is, training continues
                problem = error_message(error)
            else:
                break
            if problem != reported:
                self._report_problem(payload, problem, False)
                reported = problem
            with self._changed:
                if self._changed.wait_for(lambda: self._is_closed or self._waiting is not None, timeout=pause):
                    break
            pause = min(2 * pause, MAX_PAUSE_SECONDS)
        with self._changed:
            self._in_flight = None
        payload.remove()
