"""Whether the processes of a meeting still live: while they wait for each other, a killed one must not be waited for.

Later, while the run trains, the connections between the machines show this at once.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

BEAT_SECONDS = 3.0
SILENT_SECONDS = 45.0  # an import from a slow network disk can keep other threads waiting for seconds
BEATS = "beats"  # key


class Heartbeat(threading.Thread):
    """Counts in the store, under the rank of this process, until `stop` or the end of the process."""

    def __init__(self, store: Any, rank: int) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._store, self._key = store, f"{BEATS}/{rank}"
        self._stopped = threading.Event()

    def run(self) -> None:
        """Count until it is stopped or the store has ended."""
        with suppress(RuntimeError):  # of torch: the store is gone, which the main thread finds too
            while not self._stopped.is_set():
                self._store.add(self._key, 1)
                self._stopped.wait(BEAT_SECONDS)

    def stop(self) -> None:
        """Count no more."""
        self._stopped.set()
        if self.is_alive():
            self.join(BEAT_SECONDS)


class Listener:
    """Finds processes whose heartbeat has stopped; not those that never had one."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._heard: dict[int, tuple[int, float]] = {}  # by rank: the last count, and when it changed
        self._listened_at = -BEAT_SECONDS

    def is_due(self) -> bool:
        """Whether the next beat of the others can be there."""
        return time.monotonic() - self._listened_at > BEAT_SECONDS

    def silent(self, ranks: Sequence[int]) -> list[int]:
        """Those of `ranks` that have been silent for too long."""
        self._listened_at = now = time.monotonic()
        for rank in ranks:
            count = self._store.add(f"{BEATS}/{rank}", 0)
            if count != self._heard.get(rank, (0, now))[0]:
                self._heard[rank] = (count, now)
        return [rank for rank in ranks if now - self._heard.get(rank, (0, now))[1] > SILENT_SECONDS]
