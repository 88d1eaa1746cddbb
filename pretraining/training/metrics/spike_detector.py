"""Steps that went wrong: a loss far above the last ones, or one that is no number."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

MEDIAN_WINDOW = 16  # steps whose median a loss is compared with: few, since the loss falls fast at first
WINDOW = 128  # such differences, among which a new one must stand out
MIN_HISTORY = 16  # of them before anything is a spike
MAD_TO_SIGMA = 1.4826  # the median absolute deviation of a normal distribution is sigma / 1.4826
MIN_SIGMA = 0.01  # of the loss: losses that hardly differ at all make no spike out of nothing

AnomalyKind = Literal["non-finite", "spike"]


@dataclass(frozen=True)
class Anomaly:
    """What is wrong with a step; `score` is the robust z-score of its loss, None for one that is no number."""

    fault: AnomalyKind
    score: float | None


class SpikeDetector:
    """Compares how far each step's loss is above the median of the last 16 with how far the last 128 were.

    In units of their median absolute deviation; medians, which a spike in the window hardly moves (Iglewicz and
    Hoaglin, 1993, How to Detect and Handle Outliers). Steps with a fault do not enter the window; but 16 spikes in a
    row are the level of now on, and no more a spike each, of which every one would be reported.
    """

    def __init__(
        self, *, threshold: float, recent_losses: Iterable[float] = (), spike_losses: Iterable[float] = ()
    ) -> None:
        self._threshold = threshold
        self._recent: deque[float] = deque(recent_losses, maxlen=MEDIAN_WINDOW + WINDOW)
        self._spikes = list(spike_losses)

    @property
    def recent_losses(self) -> list[float]:
        """What it compares with, oldest first."""
        return list(self._recent)

    @property
    def spike_losses(self) -> list[float]:
        """The spikes since the last sound step: with `recent_losses` all that it knows."""
        return list(self._spikes)

    def judge(self, loss: float, *, was_skipped: bool) -> Anomaly | None:
        """What is wrong with a step of this loss; `was_skipped` says that its gradient was no number."""
        if was_skipped or not math.isfinite(loss):
            return Anomaly("non-finite", None)
        score = self._score(loss)
        if score > self._threshold:
            self._add_spike(loss)
            return Anomaly("spike", score)
        self._spikes.clear()
        self._recent.append(loss)
        return None

    def _add_spike(self, loss: float) -> None:
        self._spikes.append(loss)
        if len(self._spikes) == MEDIAN_WINDOW:
            self._recent.clear()
            self._recent.extend(self._spikes)
            self._spikes.clear()

    def _score(self, loss: float) -> float:
        if len(self._recent) < MEDIAN_WINDOW + MIN_HISTORY:
            return 0.0
        losses = np.array(self._recent)
        local_medians = np.median(np.lib.stride_tricks.sliding_window_view(losses, MEDIAN_WINDOW), axis=1)
        differences = losses[MEDIAN_WINDOW:] - local_medians[:-1]
        usual = np.median(differences)
        deviation = MAD_TO_SIGMA * np.median(abs(differences - usual))
        difference = loss - local_medians[-1] - usual
        return float(difference / max(deviation, MIN_SIGMA * abs(local_medians[-1])))
