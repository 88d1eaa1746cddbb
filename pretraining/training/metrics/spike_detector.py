"""Detect anomalies: a loss far above the last ones, NaN or Inf."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

MEDIAN_WINDOW = 16  # steps whose median a loss is compared with: few, since the loss falls fast at first
WINDOW = 128  # differences from such medians, which a new difference is compared with
MIN_HISTORY = 16  # differences before any loss is a spike
MAD_TO_SIGMA = 1.4826  # the median absolute deviation of a normal distribution is sigma / 1.4826
MIN_SIGMA = 0.01  # relative to the loss: almost equal losses do not make a tiny difference a spike

AnomalyKind = Literal["non-finite", "spike"]


@dataclass(frozen=True)
class Anomaly:
    """What is wrong with a step; `score` is the robust z-score of its loss, None for NaN and Inf."""

    kind: AnomalyKind
    score: float | None


class SpikeDetector:
    """Compares each step's loss minus the median of the last 16 with the last 128 such differences.

    The unit is their median absolute deviation: a spike in the window hardly moves a median (Iglewicz and Hoaglin,
    1993, How to Detect and Handle Outliers). Anomalies do not enter the window; but 16 spikes in a row are the new
    level, and the next loss at that level is normal.
    """

    def __init__(
        self, *, threshold: float, recent_losses: Iterable[float] = (), spike_losses: Iterable[float] = ()
    ) -> None:
        self._threshold = threshold
        self._recent: deque[float] = deque(recent_losses, maxlen=MEDIAN_WINDOW + WINDOW)
        self._spikes = list(spike_losses)

    @property
    def recent_losses(self) -> list[float]:
        """The losses in the window, oldest first."""
        return list(self._recent)

    @property
    def spike_losses(self) -> list[float]:
        """The spikes since the last normal step; with `recent_losses` the whole state."""
        return list(self._spikes)

    def classify(self, loss: float, *, was_skipped: bool) -> Anomaly | None:
        """The anomaly of a step with this loss, if any; `was_skipped` means that its gradient was NaN or Inf."""
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
        center = np.median(differences)
        deviation = MAD_TO_SIGMA * np.median(abs(differences - center))
        difference = loss - local_medians[-1] - center
        return float(difference / max(deviation, MIN_SIGMA * abs(local_medians[-1])))
