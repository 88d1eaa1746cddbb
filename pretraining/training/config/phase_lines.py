"""The phases of a run in words, for its log, its plan and its card."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from pretraining.cli.arguments.phases import PhaseArguments
from pretraining.cli.logs import counted
from pretraining.data.mixture import Mixture
from pretraining.planning.global_batch import GlobalBatch
from pretraining.training.data.phases import RunOrder, chain_orders, plan_orders
from pretraining.training.optim.schedule import Schedule


@dataclass(frozen=True)
class PhasePlan:
    """What the phases of a run are made of; `ends` are their last steps, and `mixture` is None without blocks here.

    `order` is that of a run from its start on, with the `manifests` of all stores; a plan has neither.
    """

    phases: Sequence[PhaseArguments]
    ends: Sequence[int]
    schedule: Schedule
    batch: GlobalBatch
    mixture: Mixture | None
    manifests: Sequence[str] = ()
    order: RunOrder | None = None

    def lines(self) -> Iterator[str]:
        """Each phase with its steps, tokens, learning rates, and the blocks and epochs of each of its sources.

        Epochs are those of the source from the start of the run on. Of other data before a resumed run's start, only
        the counts at the start are known, so earlier phases have no line of their sources.
        """
        start = 0
        for number, (phase, end) in enumerate(zip(self.phases, self.ends, strict=True)):
            first, last = self.schedule.learning_rate(start + 1), self.schedule.learning_rate(end)
            shape = self.schedule.at(end).shape
            yield (
                f"phase {phase.name}: steps {start + 1:,} to {end:,}, {(end - start) * self.batch.tokens:,} tokens, "
                f"learning rate {first:.2e} to {last:.2e} ({shape})"
            )
            if self.mixture is not None:
                yield from self._source_lines(self.mixture, number, start * self.batch.blocks, end * self.batch.blocks)
            start = end

    @cached_property
    def _sources(self) -> tuple[dict[str, str], RunOrder]:
        """The hash of each store by its name, or its name in a plan, and the order by which blocks are counted."""
        assert self.mixture is not None
        names = [part.store.name for part in self.mixture.parts]
        hashes = dict(zip(names, self.manifests or names, strict=True))
        firsts = [0, *(last * self.batch.blocks for last in self.ends[:-1])]
        planned = plan_orders(self.mixture, list(hashes.values()), seed=0)
        order = chain_orders(planned, firsts, start=0, read={}, saved=None)
        if self.order is not None and order.blocks_by_store(self.order.start) != Counter(self.order.read):
            order = self.order
        return hashes, order

    def _source_lines(self, mixture: Mixture, number: int, start: int, end: int) -> Iterator[str]:
        hashes, order = self._sources
        if end <= order.start:
            return
        before, after = order.blocks_by_store(start), order.blocks_by_store(end)
        for part in mixture.phases[number].parts:
            name, size = hashes[part.store.name], part.store.manifest.splits["train"].num_blocks
            epochs = f"{before[name] / size:.2f} to {after[name] / size:.2f}" if size else "none"
            blocks = counted(after[name] - before[name], "block") + " left" * (start < order.start)
            yield f"phase {self.phases[number].name}, {part.source or part.store.name}: {blocks}, epochs {epochs}"
