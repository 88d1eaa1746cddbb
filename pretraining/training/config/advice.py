"""Warnings before a run: how its length, batch and evaluations fit its data, with the flags that do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.data.mixture import Mixture
from pretraining.planning.evaluation import EvaluationPlan, plan_evaluation
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import TrainingLayout
from pretraining.planning.length import RunLength, Source, describe_unread, length_advice, oversized_step

if TYPE_CHECKING:  # it imports torch, and early_checks.py imports this
    from pretraining.training.optim.schedule import Schedule


@dataclass(frozen=True)
class RunAdvice:
    """Advice on a run of `num_steps` on its data."""

    arguments: PretrainArguments
    mixture: Mixture
    layout: TrainingLayout
    batch: GlobalBatch
    num_steps: int
    schedule: Schedule

    @cached_property
    def evaluation(self) -> EvaluationPlan:
        """The evaluations of the run."""
        return plan_evaluation(
            self.arguments,
            self.layout,
            self.batch,
            num_steps=self.num_steps,
            num_validation_blocks=sum(self.mixture.num_blocks("validation")),
            num_test_blocks=sum(self.mixture.num_blocks("test")),
        )

    @cached_property
    def length(self) -> RunLength:
        """Steps, warmup and epochs of the run. What a resumed run read of other data is not known here."""
        parts, sizes = self.mixture.parts, self.mixture.num_blocks("train")
        per_weight = self.num_steps * self.batch.blocks / sum(part.weight for part in parts)
        sources = [
            Source(part.source, part.store.name, part.weight, per_weight * part.weight / max(1, size))
            for part, size in zip(parts, sizes, strict=True)
        ]
        warmup_steps, peak = self.schedule.warmup_steps, self.schedule.peak
        return RunLength(self.batch, self.num_steps, sum(sizes), warmup_steps, peak, sources)

    @property
    def obstacle(self) -> str | None:
        """With what the start would be rejected: a step larger than an epoch; None otherwise."""
        run, is_synthetic = self.length, self.arguments.data.is_synthetic
        return oversized_step(run.batch, run.num_blocks, warmup_steps=run.warmup_steps, is_synthetic=is_synthetic)

    def warnings(self) -> Iterator[str]:
        """Yield what is likely a mistake; nothing for most runs."""
        if self.obstacle is None:
            yield from length_advice(self.arguments, self.length)
        yield from self._long_warmups()
        if (advice := self.evaluation.advice()) is not None:
            yield advice

    def _long_warmups(self) -> Iterator[str]:
        """Yield the phases that end before their warmup; `length_advice` has the one that is longer than the run."""
        phases = self.arguments.data.phases
        names = [phase.name for phase in phases if phase is phases[0] or phase.has_schedule]
        for name, (part, length) in zip(names, self.schedule.parts(self.num_steps), strict=False):
            if length < part.warmup_steps < self.num_steps:
                yield (
                    f"--phases: {name}: its warmup of {part.warmup_steps:,} steps is longer than the {length:,} of its "
                    f"schedule, so the learning rate never reaches {part.peak:.2e}; use warmup_steps 0.1"
                )

    def unread(self) -> str | None:
        """How much of the data is read, with the flag to read all; None where all is read, or is without sense."""
        return None if self.arguments.data.is_synthetic else describe_unread(self.arguments, self.length)


def empty_split_warnings(mixture: Mixture, *, evaluates: bool, resumes: bool = False) -> Iterator[str]:
    """Yield a warning for a validation or test without a block, unless that was wanted.

    preprocess.py has reported what to change. A resumed run does not repeat that of the test.
    """
    weights = [part.store.manifest.origin.split_weights for part in mixture.parts]
    if evaluates and any(part[1] for part in weights) and not sum(mixture.num_blocks("validation")):
        yield (
            f"{mixture.names}: validation has no block, so nothing is evaluated during training; use more data or "
            "another --split"
        )
    if not resumes and any(part[2] for part in weights) and not sum(mixture.num_blocks("test")):
        yield f"{mixture.names}: test has no block, so there will be no test loss"
