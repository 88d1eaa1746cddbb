"""Looks at every step: the exact loss in total and by source, faults, and what is done about them."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from pretraining.errors import UserError
from pretraining.training.data.batch import Batch
from pretraining.training.metrics.evaluation import figures_by_source, figures_of
from pretraining.training.metrics.spike_detector import Anomaly, SpikeDetector
from pretraining.training.model.loss import NUM_SUMS, TokenLosses, block_sums, source_sums

# Of callbacks, by which the Trainer saves their state: a checkpoint of that time is resumed too.
EARLIER_NAMES = {"StepMetrics": "StepWatch", "AnomalyCallback": "FaultHandler", "StopCallback": "Stopping"}
# One after another; dynamic loss scaling of fp16 halves its scale from 2^16 to 1 in 32 such steps at most.
MOST_NON_FINITE_STEPS = 50
SMOOTHING = 0.98  # as much as the mean of about the last 50 steps
LEFT_OUT = ("num_tokens", "perplexity/")  # of the figures: they follow from others, and each takes time to report
UNNAMED = ""  # in a checkpoint, the source of data that has only one

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """One finished step: its exact mean loss over all processes, and what is wrong with it if anything."""

    loss: float
    verdict: Anomaly | None


@dataclass
class SmoothedLoss:
    """The mean of the losses until now, in which each step counts `SMOOTHING` times as much as the one after it.

    Over the sum of these weights, so that the first steps, of which there are few, are not drawn to 0.
    """

    sum: float = 0.0
    weight: float = 0.0

    def add(self, loss: float) -> None:
        """Take in a step."""
        self.sum = SMOOTHING * self.sum + (1 - SMOOTHING) * loss
        self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    @property
    def value(self) -> float:
        """It; no number before the first step."""
        return self.sum / self.weight if self.weight else math.nan


class StepMetrics(TrainerCallback, ExportableState):
    """Sums up what micro steps give, and judges each step; all processes come to the same verdict.

    One small reduction a step and none a micro step. What it knows of the past is saved in each checkpoint, by the
    names of the sources: `--allow_changed data` can change their number, order and names. `has_same_data` is for
    checkpoints of versions that saved no names: whether the data is that of the run's last start.
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
        """Take in one micro batch."""
        self._step_sums += source_sums(tokens, batch, len(self._sources))
        self._block_sums.append(block_sums(tokens))

    def finish_step(self, *, was_skipped: bool) -> StepResult:
        """Judge the step that is over; called on every process.

        Raises:
            UserError: when nothing but faults come any more.
        """
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._step_sums)
        sums = self._step_sums.to("cpu", copy=True)
        self._step_sums.zero_()
        loss = float(sums[:, 0].sum() / sums[:, 2].sum())
        verdict = self._detector.judge(loss, was_skipped=was_skipped)
        self._tokens[: len(sums)] += sums[:, 2]
        if math.isfinite(loss):
            self._interval_sums[: len(sums)] += sums
            self._smoothed.add(loss)
        self._count(verdict)
        return StepResult(loss, verdict)

    def block_sums(self) -> torch.Tensor:
        """Losses and predictions of this process's blocks in the step that is over, [micro steps, blocks, 2]."""
        return torch.stack(self._block_sums)

    def forget_step(self) -> None:
        """Make room for the blocks of the next step."""
        self._block_sums.clear()

    def take_figures(self) -> dict[str, float]:
        """Loss, accuracy and tokens since they were last taken, without NaN steps.

        Where there are several sources, by source too; of sources that the run read before its data was changed, the
        tokens stay in the record.
        """
        sums, named = self._interval_sums, self._named_rows()
        figures = {"non_finite_steps": self.num_non_finite_steps, "spikes": self.num_spikes}
        figures |= {f"tokens/{source}": int(self._tokens[row]) for source, row in named.items()}
        if sums[:, 2].sum() == 0:
            return {"loss": math.nan, **figures}
        figures["smoothed_loss"] = self._smoothed.value
        figures |= figures_of(sums.sum(dim=0).tolist())
        if named:
            figures |= figures_by_source(sums[list(named.values())], list(named))
        self._interval_sums = torch.zeros_like(sums)
        return {name: value for name, value in figures.items() if not name.startswith(LEFT_OUT)}

    def _named_rows(self) -> dict[str, int]:
        """The rows of the sources by which figures are logged; none when only one source is read."""
        if len(self._sources) == 1:
            return {}
        return {name: row for row, name in enumerate(self._names) if name or row < len(self._sources)}

    def _count(self, verdict: Anomaly | None) -> None:
        is_non_finite = verdict is not None and verdict.fault == "non-finite"
        self.num_non_finite_steps += is_non_finite
        self.num_spikes += verdict is not None and verdict.fault == "spike"
        self._num_non_finite_in_a_row = self._num_non_finite_in_a_row + 1 if is_non_finite else 0
        if self._num_non_finite_in_a_row >= MOST_NON_FINITE_STEPS:
            raise UserError(
                f"--learning_rate: {MOST_NON_FINITE_STEPS} steps one after another had a loss or gradient that is no "
                "number and were skipped; go on from an earlier checkpoint with a lower one, or another --seed"
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
                # A checkpoint can be between two lines of the log.
                "interval_sums": dict(zip(self._names, self._interval_sums.tolist(), strict=True)),
            },
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept; from nothing at the beginning of a run."""
        losses = {name: kept.get(name, ()) for name in ("recent_losses", "spike_losses")}
        self._detector = SpikeDetector(threshold=self._threshold, **losses)
        self.num_non_finite_steps = kept.get("num_non_finite_steps", 0)
        self.num_spikes = kept.get("num_spikes", 0)
        self._smoothed = SmoothedLoss(*kept.get("smoothed_loss", (0.0, 0.0)))
        self._restore_sums(kept.get("tokens_by_source", {}), kept.get("interval_sums", {}))
        self.forget_step()

    def _restore_sums(self, tokens: Any, interval_sums: Any) -> None:
        """Give each source the sums of its name, and each source that is not read any more a row after them."""
        if not isinstance(tokens, Mapping) and not self._fits(tokens):
            logger.warning("--allow_changed data: the checkpoint has no sources by name, so tokens/SOURCE start at 0")
        tokens, interval_sums = self._by_name(tokens), self._by_name(interval_sums)
        self._names = tuple(dict.fromkeys([*self._sources, *tokens]))
        self._tokens = torch.tensor([tokens.get(name, 0.0) for name in self._names], dtype=torch.float64)
        rows = [interval_sums.get(name, [0.0] * NUM_SUMS) for name in self._names]
        self._interval_sums = torch.tensor(rows, dtype=torch.float64)

    def _by_name(self, sums: Mapping[str, Any] | Sequence[Any]) -> Mapping[str, Any]:
        """Sums of a checkpoint; earlier versions saved them as a list without names, which only their own data fits."""
        if isinstance(sums, Mapping):
            return sums
        return dict(zip(self._sources, sums, strict=True)) if self._fits(sums) else {}

    def _fits(self, sums: Sequence[Any]) -> bool:
        return self._has_same_data and len(sums) == len(self._sources)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what the checkpoint kept that the run goes on from."""
        self.restore(callback_state(state, StepMetrics.__name__))


def callback_state(state: TrainerState, callback: str) -> dict[str, Any]:
    """What the callback of this class, by its name of today, kept in the checkpoint that `state` was read from."""
    saved = state.stateful_callbacks or {}
    kept = saved.get(callback, saved.get(EARLIER_NAMES.get(callback, ""), {}))
    return kept.get("attributes", {}) if isinstance(kept, dict) else {}
