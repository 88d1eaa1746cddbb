"""How much of a run is evaluation: the blocks it reads, its share of the time, and flags that bound it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pretraining.cli.arguments.pretrain import PretrainArguments
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import TrainingLayout
from pretraining.planning.length import two_digits
from pretraining.planning.speed import recomputed_share

MAX_SHARE = 0.1  # of the time, above which evaluation deserves a warning
MIN_BLOCKS = 10  # that are suggested: the loss of fewer depends more on these blocks than on the model
# A training block, in forward passes: backward takes twice the FLOPs of forward (arXiv 2204.02311, appendix B).
FORWARDS_PER_BLOCK = 3


def evaluation_batch(num_blocks: int, *, max_blocks: int, num_groups: int) -> int:
    """Blocks of a micro batch of an evaluation, at most `max_blocks`, so that as little as possible is padding.

    >>> evaluation_batch(33, max_blocks=32, num_groups=1)
    17
    """
    num_batches = math.ceil(num_blocks / (max_blocks * num_groups))
    return max(1, math.ceil(num_blocks / (num_batches * num_groups))) if num_batches else 1


@dataclass(frozen=True)
class EvaluationPlan:
    """The evaluations of a run, in blocks of all processes."""

    eval_steps: int  # steps between two evaluations
    first_step: int  # before which there is none
    on_start: bool
    num_blocks: int  # of an evaluation during the training
    num_validation_blocks: int
    num_test_blocks: int
    num_steps: int
    batch: GlobalBatch
    forwards_per_block: float  # of a training block, what is recomputed included
    has_tasks: bool = False  # of --eval_tasks, whose texts are not counted: they are encoded only as a run starts

    @property
    def is_partial(self) -> bool:
        """Whether evaluations during the training read a part of validation."""
        return self.num_blocks < self.num_validation_blocks

    @property
    def num_evaluations(self) -> int:
        """Evaluations during the training; one of the whole validation after the last step is the final one."""
        if not self.num_blocks:
            return 0
        every, last = self.eval_steps, self.num_steps - (not self.is_partial)
        regular = last // every - (max(self.first_step, 1) - 1) // every
        at_end = self.is_partial and self.num_steps % every != 0 and self.first_step <= self.num_steps
        return max(0, regular) + at_end + self.on_start

    @property
    def share(self) -> float:
        """Share of the time of all evaluations, the final one included, from 0 to 1: by FLOPs, so an estimate."""
        final = self._padded(self.num_validation_blocks) + self._padded(self.num_test_blocks)
        return (self._during + final) / (self._training + self._during + final)

    @property
    def share_during_training(self) -> float:
        """Share of the time of the evaluations that flags can bound, those before the final one."""
        return self._during / (self._training + self._during)

    @property
    def _training(self) -> float:
        return self.num_steps * self.batch.blocks * self.forwards_per_block

    @property
    def _during(self) -> int:
        return self.num_evaluations * self._padded(self.num_blocks)

    def _padded(self, num_blocks: int) -> int:
        """Blocks with those that pad the last ones to as many as there are groups of processes."""
        return math.ceil(num_blocks / self.batch.num_groups) * self.batch.num_groups

    def advice(self) -> str | None:
        """A warning with flags that fit; None where evaluations during the training take little time."""
        if self.share_during_training <= MAX_SHARE:
            return None
        fitting, percent = " or ".join(self._fitting_flags()) or "--eval_strategy no", 100 * self.share_during_training
        return (
            f"--eval_steps {self.eval_steps}: evaluation will take about {percent:.0f} % of the time "
            f"({self.num_evaluations:,} x {self.num_blocks:,} blocks while {self.num_steps * self.batch.blocks:,} are "
            f"trained on); use {fitting} to stay below {100 * MAX_SHARE:.0f} % until the last step"
        )

    def _fitting_flags(self) -> Iterator[str]:
        spare = self._training * MAX_SHARE / (1 - MAX_SHARE)  # forward passes
        partial = replace(self, num_blocks=1) if self.num_validation_blocks > 1 else self
        num_blocks = int(two_digits(spare / partial.num_evaluations, min_unit=1))
        num_blocks -= num_blocks % self.batch.num_groups
        if partial.is_partial and num_blocks >= MIN_BLOCKS:
            yield f"--eval_blocks {num_blocks}"
        num_allowed = int(spare // self._padded(self.num_blocks)) - self.on_start
        num_allowed += not self.is_partial  # the final one is not counted
        if num_allowed > 0:
            every = int(two_digits(self.num_steps / num_allowed, up=True, min_unit=1))
            if every <= self.num_steps:
                yield f"--eval_steps {every}"


def plan_evaluation(
    arguments: PretrainArguments,
    layout: TrainingLayout,
    batch: GlobalBatch,
    *,
    num_steps: int,
    num_validation_blocks: int,
    num_test_blocks: int,
) -> EvaluationPlan:
    """Count the evaluations of the flags. --eval_steps below 1 is a share of the run."""
    trainer, bound = arguments.trainer, arguments.observability.eval_blocks
    every, is_on = trainer["eval_steps"], trainer["eval_strategy"] != "no"
    return EvaluationPlan(
        eval_steps=max(1, math.ceil(every if every >= 1 else every * num_steps)),
        first_step=math.ceil(trainer["eval_delay"]),
        on_start=is_on and trainer["eval_on_start"],
        num_blocks=min(bound or num_validation_blocks, num_validation_blocks) if is_on else 0,
        num_validation_blocks=num_validation_blocks,
        num_test_blocks=num_test_blocks,
        num_steps=num_steps,
        batch=batch,
        forwards_per_block=FORWARDS_PER_BLOCK + recomputed_share(layout),
        has_tasks=is_on and bool(arguments.observability.eval_tasks),
    )
