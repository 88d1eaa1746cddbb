"""The learning rate as a function of the step: warmup, then one of four shapes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import cos, pi, sqrt
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from pretraining.cli.arguments.phases import PhaseArguments, phase_ends
from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """Linear warmup over `warmup_steps` steps to `peak`, then decay by `shape` to `minimum` at step `num_steps`.

    - cosine: half a cosine (arXiv 1608.03983, equation 5).
    - wsd: constant, then 1 - sqrt decay over the last `decay_steps` (arXiv 2405.18392, section 3.2). Before the decay
      nothing depends on `num_steps`, so a run can be made longer from there.
    - linear; constant.

    A run can be shorter or longer than `num_steps`; after it, the rate stays at `minimum`. The schedule begins after
    step `first_step` at the rate `initial`, and each of `later` replaces it after its own `first_step`: they are those
    of the phases of a run.
    """

    shape: str
    peak: float
    minimum: float
    warmup_steps: int
    decay_steps: int
    num_steps: int
    first_step: int = 0
    initial: float = 0.0
    later: tuple["Schedule", ...] = ()

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step `step`; the first is step 1, whose learning rate is not 0."""
        return self.at(step)._own_rate(step)

    def at(self, step: int) -> "Schedule":
        """The schedule that decides step `step`: this one, or one of `later`."""
        return next((part for part in reversed(self.later) if step > part.first_step), self)

    def parts(self, num_steps: int) -> list[tuple["Schedule", int]]:
        """This schedule and those of `later`, each with the number of steps that it decides in a run of `num_steps`."""
        found = (self, *self.later)
        ends = [*(part.first_step for part in self.later), num_steps]
        return [(part, end - part.first_step) for part, end in zip(found, ends, strict=True)]

    def _own_rate(self, step: int) -> float:
        peak, minimum, warm = self.peak, self.minimum, self.first_step + self.warmup_steps
        if step <= warm:
            return self.initial + (peak - self.initial) * (step - self.first_step) / self.warmup_steps
        if self.shape == "constant":
            return peak
        start = self.last_stable_step if self.shape == "wsd" else warm
        progress = min(1.0, max(0, step - start) / max(1, self.num_steps - start))
        left = {"cosine": (1 + cos(pi * progress)) / 2, "linear": 1 - progress, "wsd": 1 - sqrt(progress)}[self.shape]
        return minimum + (peak - minimum) * left

    @property
    def last_stable_step(self) -> int:
        """The last step before the decay, if this part is wsd."""
        return max(self.first_step + self.warmup_steps, self.num_steps - self.decay_steps)

    @property
    def stable_steps(self) -> tuple[int, ...]:
        """The last step of each wsd before its decay; without those that another schedule decides."""
        parts = [part for part in (self, *self.later) if part.shape == "wsd"]
        return tuple(part.last_stable_step for part in parts if self.at(part.last_stable_step + 1) is part)

    def torch_scheduler(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        """The schedule as a torch scheduler, which counts from 0."""
        # Not a method, whose object it would save.
        return _RateLR(optimizer, lambda num_done: self._torch_rate(num_done))

    def put_into(self, scheduler: LambdaLR, *, num_done: int) -> None:
        """Set the learning rate of the step after `num_done`.

        A checkpoint has that of the schedule it was saved with, and the Trainer does not count skipped steps.
        """
        groups = scheduler.optimizer.param_groups
        scheduler.last_epoch, scheduler.base_lrs = num_done, [self.peak] * len(groups)
        rate = self._torch_rate(num_done)
        for group in groups:
            group["lr"] = rate
        scheduler._last_lr = [rate] * len(groups)

    def _torch_rate(self, num_done: int) -> float:
        """The rate as torch multiplies it, of the peak of its part: otherwise 1 step in 10 differs in a bit."""
        part = self.at(num_done + 1)
        return part.peak * (part._own_rate(num_done + 1) / part.peak)

    def record(self) -> dict[str, Any]:
        """The schedule for run.json; what only later phases have is left out of others."""
        found = {name: value for name, value in vars(self).items() if name not in ("later", "first_step", "initial")}
        if self.first_step:
            found |= {"first_step": self.first_step, "initial": self.initial}
        return found | ({"later": [part.record() for part in self.later]} if self.later else {})


class _RateLR(LambdaLR):
    """Sets what its function returns, where LambdaLR multiplies it by the rate of the first phase."""

    def get_lr(self) -> list[float | torch.Tensor]:
        """The rate of every group."""
        return [self.lr_lambdas[0](self.last_epoch)] * len(self.base_lrs)


def make_schedule(arguments: PretrainArguments, *, num_steps: int) -> Schedule:
    """The schedule of the flags, for a run of `num_steps`; a phase with its own fields begins another.

    Raises:
        UserError: when warmup and decay together are longer than the run, or a phase has no step or no rate.
    """
    phases = arguments.data.phases
    starts = [0, *phase_ends(phases, num_steps)[:-1]]
    own = [(phase, start) for phase, start in zip(phases, starts, strict=False) if start == 0 or phase.has_schedule]
    ends = [*(start for _, start in own[1:]), num_steps]
    schedule = _first_schedule(arguments, own[0][0] if own else PhaseArguments(), ends[0])
    for (phase, start), end in zip(own[1:], ends[1:], strict=True):
        shape = phase.lr_scheduler_type or arguments.optimization.lr_scheduler_type
        later = _later_schedule(phase, shape, start, end, initial=schedule.learning_rate(start))
        schedule = replace(schedule, later=(*schedule.later, later))
    return schedule


def _first_schedule(arguments: PretrainArguments, phase: PhaseArguments, num_steps: int) -> Schedule:
    """The schedule of the flags, of which a phase may have its own."""
    flags, trainer = arguments.optimization, arguments.trainer
    horizon = flags.schedule_steps or num_steps
    peak = _first_of(phase.learning_rate, trainer["learning_rate"])
    given = {
        "warmup_steps": _first_of(phase.warmup_steps, trainer["warmup_steps"]),
        "decay_steps": _first_of(phase.decay_steps, flags.decay_steps),
    }
    made = Schedule(
        shape=phase.lr_scheduler_type or flags.lr_scheduler_type,
        peak=peak,
        minimum=_first_of(phase.min_learning_rate, flags.min_learning_rate, peak / 10),
        warmup_steps=_steps(given["warmup_steps"], horizon),
        decay_steps=max(1, _steps(given["decay_steps"], horizon)),
        num_steps=horizon,
    )
    of = "--schedule_steps" if flags.schedule_steps else f"phase {phase.name}" if phase.name else "the run"
    return _checked(made, phase, given, of=of)


def _later_schedule(phase: PhaseArguments, shape: str, start: int, end: int, *, initial: float) -> Schedule:
    """The schedule of a later phase: from where the one before ends, or its own rate, to 0 or its own minimum."""
    given = {"warmup_steps": phase.warmup_steps or 0, "decay_steps": _first_of(phase.decay_steps, 0.1)}
    made = Schedule(
        shape=shape,
        peak=_first_of(phase.learning_rate, initial),
        minimum=_first_of(phase.min_learning_rate, 0.0),
        warmup_steps=_steps(given["warmup_steps"], end - start),
        decay_steps=max(1, _steps(given["decay_steps"], end - start)),
        num_steps=end,
        first_step=start,
        initial=initial,
    )
    if made.peak == 0:
        raise UserError(f"--phases: {phase.name}: the phase before ends at a learning rate of 0; add learning_rate")
    return _checked(made, replace(phase, decay_steps=given["decay_steps"]), given, of="the phase")


def _first_of(*values: float | None) -> float:
    """The first value that was given."""
    return next(value for value in values if value is not None)


def _checked(schedule: Schedule, phase: PhaseArguments, given: Mapping[str, float], *, of: str) -> Schedule:
    """Reject a minimum above the peak, and a wsd whose warmup and decay together are longer than it is."""
    num_steps = schedule.num_steps - schedule.first_step
    if schedule.minimum > schedule.peak:
        raise UserError(
            f"{_place(phase, 'min_learning_rate')} {schedule.minimum:g}: is above the learning rate of "
            f"{schedule.peak:g}; use {schedule.peak:g} or less"
        )
    if schedule.shape == "wsd" and schedule.warmup_steps + schedule.decay_steps > num_steps:
        longer = "warmup_steps" if schedule.warmup_steps > schedule.decay_steps else "decay_steps"
        names = [name for name in given if given[name]]
        fitting = " ".join(f"{'--' * (getattr(phase, name) is None)}{name} 0.1" for name in names)
        raise UserError(
            f"{_place(phase, longer)} {given[longer]:g}: {schedule.warmup_steps:,} steps of warmup and "
            f"{schedule.decay_steps:,} of decay are more than the {num_steps:,} of {of}; use {fitting} for a "
            "tenth each"
        )
    return schedule


def _place(phase: PhaseArguments, name: str) -> str:
    """The field of a phase, or the flag where the phase does not set it."""
    return f"--{name}" if getattr(phase, name) is None else f"--phases: {phase.name}: {name}"


def check_same_until(step: int, recorded: Mapping[str, Any], schedule: Schedule, *, place: str) -> None:
    """Check that a schedule equals the recorded one up to `step`, from which the run resumes.

    Raises:
        UserError: with the first step that differs.
    """
    earlier = _from_record(recorded)
    for number in range(1, step + 1):
        theirs, ours = earlier.learning_rate(number), schedule.learning_rate(number)
        if abs(theirs - ours) > 1e-9 * schedule.peak:
            raise UserError(
                f"{place}: its learning rate at step {number:,} was {theirs:.4g}, these flags give {ours:.4g}; use "
                f"the flags of that run ({json.dumps(dict(recorded))}), resume from a checkpoint before that step, or "
                "pass --allow_changed schedule"
            )


def _from_record(recorded: Mapping[str, Any]) -> Schedule:
    """The schedule of a run.json.

    Raises:
        UserError: when a later phase has no complete schedule.
    """
    names = [field.name for field in fields(Schedule) if field.name != "later"]
    parts = [{name: part[name] for name in names if name in part} for part in (recorded, *recorded.get("later", ()))]
    try:
        first, *later = (Schedule(**part) for part in parts)
    except TypeError as error:
        raise UserError(f"run.json: its schedule is damaged ({error}); restore it from a backup") from None
    return replace(first, later=tuple(later))


def _steps(steps_or_fraction: float, num_steps: int) -> int:
    """A number of steps; a value below 1 is a share of the schedule."""
    return int(steps_or_fraction) if steps_or_fraction >= 1 else round(steps_or_fraction * num_steps)
