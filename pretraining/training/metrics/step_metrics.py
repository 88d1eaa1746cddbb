"""The metrics of each step: exact loss in total and by source, and anomalies."""

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from pretraining.errors import UserError
from pretraining.training.data.batch import Batch
from pretraining.training.metrics.evaluation import metrics_by_source, metrics_of_sums
from pretraining.training.metrics.spike_detector import Anomaly, SpikeDetector
from pretraining.training.metrics.throughput import MovingAverage
from pretraining.training.model.loss import NUM_SUMS, TokenLosses, block_sums, source_sums

# Earlier names of callbacks: a checkpoint has the state of a callback under the name of its class.
EARLIER_NAMES = {"StepMetrics": "StepWatch", "AnomalyCallback": "FaultHandler", "StopCallback": "Stopping"}
# In a row; dynamic loss scaling of fp16 halves its scale from 2^16 to 1 in at most 32 such steps.
MAX_NON_FINITE_STEPS = 50
TARGET_WINDOW_STEPS = 50  # whose mean loss is compared with --target_loss
UNLOGGED_PREFIXES = ("num_tokens", "perplexity/")  # they follow from other metrics, and each takes time to report
UNNAMED = ""  # in a checkpoint, the source of data with only one

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """A finished step: its exact mean loss over all processes, and its anomaly, if any."""

    loss: float
    anomaly: Anomaly | None


class StepMetrics(TrainerCallback, ExportableState):
    """Adds up the losses of micro steps and classifies each step; the result is the same on every process.

    One small all-reduce per step, none per micro step. Its state is saved in each checkpoint by the names of the
    sources, whose number, order and names `--allow_changed data` can change. `has_same_data`, whether the data is that
    of the run's last start, is for checkpoints of versions that saved no names.
    """

    def __init__(
        self, *, sources: Sequence[str], spike_threshold: float, device: torch.device, has_same_data: bool = True
    ) -> None:
        self._sources = sources if len(sources) > 1 else (UNNAMED,)
        self._has_same_data = has_same_data
        self._threshold = spike_threshold
        self._step_sums = torch.zeros(len(sources), NUM_SUMS, dtype=torch.float64, device=device)
        self._interval_sums = torch.zeros(len(self._sources), NUM_SUMS, dtype=torch.float64)
        self._block_sums: list[torch.Tensor] = []
        self._num_non_finite_in_a_row = 0
        self.restore({})

    def add(self, tokens: TokenLosses, batch: Batch) -> None:
        """Add a micro batch."""
        self._step_sums += source_sums(tokens, batch, len(self._sources))
        self._block_sums.append(block_sums(tokens))

    def finish_step(self, *, was_skipped: bool) -> StepResult:
        """Classify the finished step; called on every process.

        Raises:
            UserError: after too many steps in a row with NaN or Inf.
        """
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._step_sums)
        sums = self._step_sums.to("cpu", copy=True)
        self._step_sums.zero_()
        loss = float(sums[:, 0].sum() / sums[:, 2].sum())
        anomaly = self._detector.classify(loss, was_skipped=was_skipped)
        self._tokens[: len(sums)] += sums[:, 2]
        if math.isfinite(loss):
            self._interval_sums[: len(sums)] += sums
            self._smoothed.add(loss)
            self._window.append(loss)
        self._count(anomaly)
        return StepResult(loss, anomaly)

    @property
    def num_window_losses(self) -> int:
        """How many losses of the last 50 steps are known."""
        return len(self._window)

    @property
    def window_loss(self) -> float | None:
        """The mean loss of the last 50 steps, without NaN steps; None before there are as many."""
        is_full = len(self._window) == TARGET_WINDOW_STEPS
        return math.fsum(self._window) / TARGET_WINDOW_STEPS if is_full else None

    def block_sums(self) -> torch.Tensor:
        """Sums of losses and predictions of this process's blocks in the finished step, [micro steps, blocks, 2]."""
        return torch.stack(self._block_sums)

    def clear_step(self) -> None:
        """Drop the block sums of the finished step."""
        self._block_sums.clear()

    def pop_metrics(self) -> dict[str, float]:
        """Loss, accuracy and tokens since the last call, without NaN steps; with several sources also by source.

        The tokens of sources that were read only before the data was changed stay in the record.
        """
        sums, named = self._interval_sums, self._named_rows()
        metrics = {"non_finite_steps": self.num_non_finite_steps, "spikes": self.num_spikes}
        metrics |= {f"tokens/{source}": int(self._tokens[row]) for source, row in named.items()}
        if sums[:, 2].sum() == 0:
            return {"loss": math.nan, **metrics}
        metrics["smoothed_loss"] = self._smoothed.value
        metrics |= metrics_of_sums(sums.sum(dim=0).tolist())
        if named:
            metrics |= metrics_by_source(sums[list(named.values())], list(named))
        self._interval_sums = torch.zeros_like(sums)
        return {name: value for name, value in metrics.items() if not name.startswith(UNLOGGED_PREFIXES)}

    def _named_rows(self) -> dict[str, int]:
        """The rows of the sources that are logged by name; none when only one source is read."""
        if len(self._sources) == 1:
            return {}
        return {name: row for row, name in enumerate(self._names) if name or row < len(self._sources)}

    def _count(self, anomaly: Anomaly | None) -> None:
        is_non_finite = anomaly is not None and anomaly.kind == "non-finite"
        self.num_non_finite_steps += is_non_finite
        self.num_spikes += anomaly is not None and anomaly.kind == "spike"
        self._num_non_finite_in_a_row = self._num_non_finite_in_a_row + 1 if is_non_finite else 0
        if self._num_non_finite_in_a_row >= MAX_NON_FINITE_STEPS:
            raise UserError(
                f"--learning_rate: {MAX_NON_FINITE_STEPS} steps in a row had a NaN or Inf loss or gradient and were "
                "skipped; resume from an earlier checkpoint with a lower --learning_rate or another --seed"
            )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "args": {},
            "attributes": {
                "recent_losses": self._detector.recent_losses,
                "spike_losses": self._detector.spike_losses,
                "tokens_by_source": dict(zip(self._names, self._tokens.tolist(), strict=True)),
                "num_non_finite_steps": self.num_non_finite_steps,
                "num_spikes": self.num_spikes,
                "smoothed_loss": [self._smoothed.sum, self._smoothed.weight],
                "window_losses": list(self._window),
                # A checkpoint can be saved between two log records.
                "interval_sums": dict(zip(self._names, self._interval_sums.tolist(), strict=True)),
            },
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore the state of a checkpoint; {} resets to the start of a run."""
        losses = {name: saved.get(name, ()) for name in ("recent_losses", "spike_losses")}
        self._detector = SpikeDetector(threshold=self._threshold, **losses)
        self.num_non_finite_steps = saved.get("num_non_finite_steps", 0)
        self.num_spikes = saved.get("num_spikes", 0)
        self._smoothed = MovingAverage(*saved.get("smoothed_loss", (0.0, 0.0)))
        self._window: deque[float] = deque(saved.get("window_losses", ()), maxlen=TARGET_WINDOW_STEPS)
        self._restore_sums(saved.get("tokens_by_source", {}), saved.get("interval_sums", {}))
        self.clear_step()

    def _restore_sums(self, tokens: Any, interval_sums: Any) -> None:
        """Give each source the sums of its name; sources that are no longer read get the rows after them."""
        if not isinstance(tokens, Mapping) and not self._fits(tokens):
            logger.warning("--allow_changed data: the checkpoint has no sources by name, so tokens/SOURCE start at 0")
        tokens, interval_sums = self._by_name(tokens), self._by_name(interval_sums)
        self._names = tuple(dict.fromkeys([*self._sources, *tokens]))
        self._tokens = torch.tensor([tokens.get(name, 0.0) for name in self._names], dtype=torch.float64)
        rows = [interval_sums.get(name, [0.0] * NUM_SUMS) for name in self._names]
        self._interval_sums = torch.tensor(rows, dtype=torch.float64)

    def _by_name(self, sums: Mapping[str, Any] | Sequence[Any]) -> Mapping[str, Any]:
        """The sums of a checkpoint by source; earlier versions saved a list, which fits the same data only."""
        if isinstance(sums, Mapping):
            return sums
        return dict(zip(self._sources, sums, strict=True)) if self._fits(sums) else {}

    def _fits(self, sums: Sequence[Any]) -> bool:
        return self._has_same_data and len(sums) == len(self._sources)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Restore the state of the checkpoint that the run resumes from."""
        self.restore(callback_state(state, StepMetrics.__name__))


def callback_state(state: TrainerState, callback: str) -> dict[str, Any]:
    """The state of a callback, by its current class name, in the checkpoint that `state` was read from."""
    saved = state.stateful_callbacks or {}
    found = saved.get(callback, saved.get(EARLIER_NAMES.get(callback, ""), {}))
    return found.get("attributes", {}) if isinstance(found, dict) else {}
