"""The learning rate as a function of the step: warmup, then one of four shapes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import cos, pi, sqrt
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Linear warmup over `warmup_steps` steps to `peak`, then decay by `shape` to `minimum` at step `num_steps`.

    - cosine: half a cosine (arXiv 1608.03983, equation 5).
    - wsd: constant, then 1 - sqrt decay over the last `decay_steps` (arXiv 2405.18392, section 3.2). Before the decay
      nothing depends on `num_steps`, so a run can be made longer from there.
    - linear; constant.
    """

    shape: str
    peak: float
    minimum: float
    warmup_steps: int
    decay_steps: int
    num_steps: int

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`; the first is step 1, whose learning rate is not 0."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        if self.shape == "constant":
            return self.peak
        start = self.last_stable_step if self.shape == "wsd" else self.warmup_steps
        progress = min(1.0, max(0, step - start) / max(1, self.num_steps - start))
        left = {"cosine": (1 + cos(pi * progress)) / 2, "linear": 1 - progress, "wsd": 1 - sqrt(progress)}[self.shape]
        return self.minimum + (self.peak - self.minimum) * left

    @property
    def last_stable_step(self) -> int:
        """The last step of wsd before the decay."""
        return max(self.warmup_steps, self.num_steps - self.decay_steps)

    def torch_scheduler(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """The schedule as a torch scheduler, which counts from 0."""
        return LambdaLR(optimizer, lambda num_done: self._factor(num_done))  # not a method, whose object it would save

    def put_into(self, scheduler: LambdaLR, *, num_done: int) -> None:
        """Set the learning rate of the step after `num_done`.

        A checkpoint has that of the schedule it was saved with, and the Trainer does not count skipped steps.
        """
        groups = scheduler.optimizer.param_groups
        scheduler.last_epoch, scheduler.base_lrs = num_done, [self.peak] * len(groups)
        rate = self.peak * self._factor(num_done)  # as torch multiplies: otherwise 1 step in 10 differs in a bit
        for group in groups:
            group["lr"] = rate
        scheduler._last_lr = [rate] * len(groups)

    def _factor(self, num_done: int) -> float:
        return self.learning_rate(num_done + 1) / self.peak


def make_schedule(arguments: PretrainArguments, *, num_steps: int) -> Schedule:
    """The schedule of the flags, for a run of `num_steps`.

    Raises:
        UserError: when warmup and decay together are longer than the run.
    """
    optimization, trainer = arguments.optimization, arguments.trainer
    peak, minimum = trainer["learning_rate"], optimization.min_learning_rate
    schedule = Schedule(
        shape=optimization.lr_scheduler_type,
        peak=peak,
        minimum=peak / 10 if minimum is None else minimum,
        warmup_steps=_steps(trainer["warmup_steps"], num_steps),
        decay_steps=max(1, _steps(optimization.decay_steps, num_steps)),
        num_steps=num_steps,
    )
    if schedule.shape == "wsd" and schedule.warmup_steps + schedule.decay_steps > num_steps:
        raise UserError(
            f"--decay_steps {optimization.decay_steps:g}: {schedule.warmup_steps:,} steps of warmup and "
            f"{schedule.decay_steps:,} of decay are more than the {num_steps:,} of the run; reduce one of them"
        )
    return schedule


def check_same_until(step: int, recorded: Mapping[str, Any], schedule: Schedule, *, place: str) -> None:
    """Check that a schedule equals the recorded one up to `step`, from which the run resumes.

    Raises:
        UserError: with the first step that differs.
    """
    earlier = Schedule(**{field.name: recorded[field.name] for field in fields(Schedule)})
    for number in range(1, step + 1):
        theirs, ours = earlier.learning_rate(number), schedule.learning_rate(number)
        if abs(theirs - ours) > 1e-9 * schedule.peak:
            raise UserError(
                f"{place}: its learning rate at step {number:,} was {theirs:.4g}, these flags give {ours:.4g}; use "
                f"the flags of that run ({json.dumps(dict(recorded))}), resume from a checkpoint before that step, or "
                "pass --allow_changed schedule"
            )


def _steps(steps_or_fraction: float, num_steps: int) -> int:
    """A number of steps; a value below 1 is a fraction of the run."""
    return int(steps_or_fraction) if steps_or_fraction >= 1 else round(steps_or_fraction * num_steps)
