"""Looks at every step: the exact loss in total and by source, faults, and what is done about them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from pretraining.cli.errors import UserError
from pretraining.training.evaluation import figures_by_source, figures_of
from pretraining.training.loss import NUM_SUMS, Batch, TokenLosses, block_sums, source_sums
from pretraining.training.spikes import SpikeDetector, Verdict

# One after another; dynamic loss scaling of fp16 halves its scale from 2^16 to 1 in 32 such steps at most.
MOST_NON_FINITE_STEPS = 50
SMOOTHING = 0.98  # as much as the mean of about the last 50 steps
LEFT_OUT = ("num_tokens", "perplexity/")  # of the figures: they follow from others, and each takes time to report


@dataclass(frozen=True)
class StepResult:
    """One finished step: its exact mean loss over all processes, and what is wrong with it if anything."""

    loss: float
    verdict: Verdict | None


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


class StepWatch(TrainerCallback, ExportableState):
    """Sums up what micro steps give, and judges each step; all processes come to the same verdict.

    One small reduction a step and none a micro step. What it knows of the past is saved in each checkpoint.
    """

    def __init__(self, *, sources: Sequence[str], spike_threshold: float, device: torch.device) -> None:
        self._sources = sources
        self._threshold = spike_threshold
        self._step_sums = torch.zeros(len(sources), NUM_SUMS, dtype=torch.float64, device=device)
        self._interval_sums = torch.zeros(len(sources), NUM_SUMS, dtype=torch.float64)
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
        self.tokens_by_source += sums[:, 2]
        if math.isfinite(loss):
            self._interval_sums += sums
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
        """Loss, accuracy and tokens since they were last taken, without steps that were no number."""
        sums = self._interval_sums
        figures = {"non_finite_steps": self.num_non_finite_steps, "spikes": self.num_spikes}
        if len(self._sources) > 1:
            counts = zip(self._sources, self.tokens_by_source.tolist(), strict=True)
            figures |= {f"tokens/{source}": int(count) for source, count in counts}
        if sums[:, 2].sum() == 0:
            return {"loss": math.nan, **figures}
        figures["smoothed_loss"] = self._smoothed.value
        figures |= {**figures_of(sums.sum(dim=0).tolist()), **figures_by_source(sums, self._sources)}
        self._interval_sums = torch.zeros_like(sums)
        return {name: value for name, value in figures.items() if not name.startswith(LEFT_OUT)}

    def _count(self, verdict: Verdict | None) -> None:
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
                "tokens_by_source": self.tokens_by_source.tolist(),
                "num_non_finite_steps": self.num_non_finite_steps,
                "num_spikes": self.num_spikes,
                "smoothed_loss": [self._smoothed.sum, self._smoothed.weight],
                "interval_sums": self._interval_sums.tolist(),  # a checkpoint can be between two lines of the log
            },
        }

    def restore(self, kept: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept; from nothing at the beginning of a run."""
        losses = {name: kept.get(name, ()) for name in ("recent_losses", "spike_losses")}
        self._detector = SpikeDetector(threshold=self._threshold, **losses)
        zeros = [0.0] * len(self._sources)
        self.tokens_by_source = torch.tensor(kept.get("tokens_by_source", zeros), dtype=torch.float64)
        self.num_non_finite_steps = kept.get("num_non_finite_steps", 0)
        self.num_spikes = kept.get("num_spikes", 0)
        self._smoothed = SmoothedLoss(*kept.get("smoothed_loss", (0.0, 0.0)))
        no_sums = [[0.0] * NUM_SUMS] * len(self._sources)
        self._interval_sums = torch.tensor(kept.get("interval_sums", no_sums), dtype=torch.float64)
        self.forget_step()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what the checkpoint kept that the run goes on from."""
        self.restore(kept_by(state, StepWatch.__name__))


def kept_by(state: TrainerState, callback: str) -> dict[str, Any]:
    """What the callback of this class kept in the checkpoint that `state` was read from."""
    kept = (state.stateful_callbacks or {}).get(callback, {})
    return kept.get("attributes", {}) if isinstance(kept, dict) else {}
