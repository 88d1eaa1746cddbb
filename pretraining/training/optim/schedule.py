"""The learning rate as a function of the step: warm-up, then one of four shapes."""

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
    """Linear warm-up over `warmup_steps` steps to `peak`, then `shape` down to `minimum` at step `num_steps`.

    - cosine: half a cosine (arXiv 1608.03983, equation 5).
    - wsd: constant, and over the last `decay_steps` down by 1 - square root (arXiv 2405.18392, section 3.2). Until
      then nothing depends on `num_steps`, so a run can be made longer from there.
    - linear and constant: as they say.
    """

    shape: str
    peak: float
    minimum: float
    warmup_steps: int
    decay_steps: int
    num_steps: int

    def learning_rate(self, step: int) -> float:
        """That of optimizer step `step`; the first is step 1, and its learning rate is not 0."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        if self.shape == "constant":
            return self.peak
        begin = self.last_stable_step if self.shape == "wsd" else self.warmup_steps
        progress = min(1.0, max(0, step - begin) / max(1, self.num_steps - begin))
        left = {"cosine": (1 + cos(pi * progress)) / 2, "linear": 1 - progress, "wsd": 1 - sqrt(progress)}[self.shape]
        return self.minimum + (self.peak - self.minimum) * left

    @property
    def last_stable_step(self) -> int:
        """The last step of wsd before it goes down."""
        return max(self.warmup_steps, self.num_steps - self.decay_steps)

    def torch_scheduler(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """As torch drives it, which counts from 0."""
        return LambdaLR(optimizer, lambda num_done: self._factor(num_done))  # of a method it would save the fields

    def put_into(self, scheduler: LambdaLR, *, num_done: int) -> None:
        """Give the step after `num_done` its learning rate.

        A checkpoint has that of the schedule it was saved by, and the Trainer does not count steps that were skipped.
        """
        groups = scheduler.optimizer.param_groups
        scheduler.last_epoch, scheduler.base_lrs = num_done, [self.peak] * len(groups)
        rate = self.peak * self._factor(num_done)  # as torch multiplies: otherwise one step in ten is off by a bit
        for group in groups:
            group["lr"] = rate
        scheduler._last_lr = [rate] * len(groups)

    def _factor(self, num_done: int) -> float:
        return self.learning_rate(num_done + 1) / self.peak


def make_schedule(arguments: PretrainArguments, *, num_steps: int) -> Schedule:
    """The schedule that the flags ask for, in a run of `num_steps`.

    Raises:
        UserError: when warm-up and decay leave no room for each other.
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
            f"--decay_steps {optimization.decay_steps:g}: {schedule.warmup_steps:,} steps of warm-up and "
            f"{schedule.decay_steps:,} of decay are more than the {num_steps:,} of the run; give less of one"
        )
    return schedule


def check_same_until(step: int, recorded: Mapping[str, Any], schedule: Schedule, *, place: str) -> None:
    """Refuse to go on from `step` with a schedule that would have been another one until there.

    Raises:
        UserError: with the first step that would have been different.
    """
    earlier = Schedule(**{field.name: recorded[field.name] for field in fields(Schedule)})
    for number in range(1, step + 1):
        theirs, ours = earlier.learning_rate(number), schedule.learning_rate(number)
        if abs(theirs - ours) > 1e-9 * schedule.peak:
            raise UserError(
                f"{place}: its learning rate at step {number:,} was {theirs:.4g}, these flags give {ours:.4g}; give "
                f"the flags of that run ({json.dumps(dict(recorded))}), go on from a checkpoint before that step, or "
                "allow it with --allow_changed schedule"
            )


def _steps(steps_or_share: float, num_steps: int) -> int:
    """A number of steps from one, or from a share of the run below 1."""
    return int(steps_or_share) if steps_or_share >= 1 else round(steps_or_share * num_steps)
