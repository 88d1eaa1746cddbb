"""Progress of long work: a bar on a terminal, a line every ten seconds elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from pretraining.system.cores import usable_cores
from pretraining.system.escapes import escape

if TYPE_CHECKING:
    from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_INTERVAL_SECONDS = 10.0
Item = TypeVar("Item")
Result = TypeVar("Result")


class Progress:
    """Counts bytes of input done, or other units, and shows the caller's metrics beside them."""

    def __init__(self, total: int, unit: str = "B") -> None:
        self._bar = _terminal_bar(total, unit) if sys.stderr.isatty() else None
        self._total = total
        self._done = 0
        self._started_at = time.monotonic()
        self._line_at = self._started_at

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the work started, never 0."""
        return max(time.monotonic() - self._started_at, 1e-9)

    def skip(self, count: int) -> None:
        """Exclude work that was done before from the total and the speed."""
        self._total -= count
        if self._bar is not None:
            self._bar.initial += count
            self._bar.update(count)

    def advance(self, count: int, figures: str) -> None:
        """Add finished bytes of input, or other units, and show `figures`, e.g. the documents so far."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(escape(figures), refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._line_at >= LINE_INTERVAL_SECONDS:
            self._line_at = time.monotonic()
            done = self._done / max(self._total, 1)
            left_seconds = self.elapsed_seconds * (1 - done) / max(done, 1e-9)
            logger.info("%3.0f %%, %s, %.0f s left", 100 * done, figures, left_seconds)


def _terminal_bar(total: int, unit: str) -> "tqdm[None]":
    from tqdm import tqdm  # 10 ms, for the runs on a terminal

    return tqdm(total=total, unit=unit, unit_scale=True, dynamic_ncols=True, leave=False)


def map_with_progress(
    work: Callable[[Item], Result], sized: Sequence[tuple[Item, int]], activity: str
) -> Iterator[tuple[Item, Result]]:
    """Each item, in order, with what `work` returns for it, on all cores; `sized` are items with their bytes.

    Progress in bytes is shown as `activity`.
    """
    items = [item for item, _ in sized]
    with Progress(sum(num_bytes for _, num_bytes in sized)) as progress, ThreadPoolExecutor(usable_cores()) as executor:
        for (item, num_bytes), result in zip(sized, executor.map(work, items), strict=True):
            progress.advance(num_bytes, activity)
            yield item, result
