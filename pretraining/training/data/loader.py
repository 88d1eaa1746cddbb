"""Micro batches of one process in the order of the run, starting at any position."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from pretraining.errors import UserError
from pretraining.planning.global_batch import GlobalBatch
from pretraining.system.processes import ignore_stop_signals
from pretraining.training.data.batch import Batch
from pretraining.training.data.dataset import MixedBlocks
from pretraining.training.data.phases import RunOrder, num_skipped_before

LOOK_AHEAD = 4096  # positions computed per call, which costs as much as 1,000 of them
SHARED_MEMORY = "/dev/shm"


class SharedMemoryError(UserError):
    """Shared memory is full: the workers of a DataLoader pass their batches in files there."""

    def __init__(self, num_workers: int) -> None:
        usage = shutil.disk_usage(SHARED_MEMORY)
        super().__init__(
            f"--dataloader_num_workers {num_workers}: {SHARED_MEMORY} of {usage.total / 1e6:,.0f} MB has no space for "
            "the batches of the workers; make it larger (docker run --shm-size=1g), or use --dataloader_num_workers 0"
        )


class WorkerLoader(DataLoader):
    """A DataLoader that reports full shared memory in one line."""

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from super().__iter__()
        except RuntimeError as error:
            if "shared memory" not in str(error):  # torch has no separate class for it
                raise
            raise SharedMemoryError(self.num_workers) from None


@dataclass
class BlockStream:
    """The blocks of a run in order, without the positions that a rollback skips.

    `skipped` are half-open ranges of positions, ascending. Each later order of `run` replaces the one before from the
    block on whose number is its `first`: a phase begins with a step, whatever a rollback skips. What is skipped in one
    phase moves the positions of the later ones, and they begin behind it.
    """

    run: RunOrder
    skipped: list[tuple[int, int]] = field(default_factory=list)

    def positions(self, first: int, count: int) -> np.ndarray:
        """Return the positions in the order of the `count` blocks consumed from number `first` on, int64."""
        positions = np.arange(first, first + count)
        for start, stop in self.skipped:
            positions[positions >= start] += stop - start
        return positions

    def block_ids(self, first: int, count: int) -> np.ndarray:
        """Return the `count` blocks consumed from number `first` on, int64."""
        positions = self.positions(first, count)
        ids = np.empty(count, np.int64)
        for phase, (begin, end) in zip(self.order.orders, self._parts(first, count), strict=True):
            own = slice(begin - first, max(begin, end) - first)
            moved = num_skipped_before(phase.order.first, self.skipped)
            ids[own] = phase.order.block_ids(positions[own] - moved)
        return ids

    @property
    def order(self) -> RunOrder:
        """The orders of the run, after what was skipped in each."""
        return self.run.after_skips(self.skipped)

    def _parts(self, first: int, count: int) -> list[tuple[int, int]]:
        """The part of each order of the blocks with numbers from `first` on, half-open; its end may be before it."""
        borders = [phase.order.first for phase in self.run.orders[1:]]
        ends = [min(first + count, border) for border in (*borders, first + count)]
        return list(zip([first, *(max(first, border) for border in borders)], ends, strict=True))

    def skip(self, first: int, count: int) -> None:
        """Skip the `count` blocks that would now be consumed from number `first` on.

        Over the border of a phase, the earlier phase reads on in their place, so it may read what the later one skips.
        """
        for begin, end in reversed(self._parts(first, count)):  # what an earlier order skips moves the later ones
            if begin < end:
                self._skip_in_order(begin, end - begin)

    def _skip_in_order(self, first: int, count: int) -> None:
        """Skip blocks of one order, and move what was skipped in later ones."""
        positions = self.positions(first, count)
        starts = positions[np.flatnonzero(np.diff(positions, prepend=-2) > 1)]
        stops = positions[np.flatnonzero(np.diff(positions, append=positions[-1] + 2) > 1)] + 1
        border = next((phase.order.first for phase in self.run.orders[1:] if phase.order.first > first), None)
        end = inf if border is None else border + num_skipped_before(border, self.skipped)
        moved = [(start + count, stop + count) if start >= end else (start, stop) for start, stop in self.skipped]
        self.skipped = sorted([*moved, *zip(starts.tolist(), stops.tolist(), strict=True)])


class BlockLoader:
    """Micro batches of this process, from any block of the stream until `num_blocks` are consumed in total.

    A micro step takes `micro_batch_blocks` blocks for group 0 of processes, as many for group 1, and so on, so that a
    step has the same blocks however it is divided. `loader_options` are those of torch's DataLoader.
    """

    def __init__(
        self,
        blocks: MixedBlocks,
        stream: BlockStream,
        batch: GlobalBatch,
        *,
        group: int,
        num_blocks: int,
        **loader_options: Any,
    ) -> None:
        self.dataset = blocks
        self.num_consumed = 0
        self._stream = stream
        self._batch = batch
        self._group = group
        self._num_blocks = num_blocks
        self._loader_options = loader_options
        self._was_moved = False

    def move_to(self, num_consumed: int) -> None:
        """Continue at another block, or after a change of the stream; what was read ahead is dropped."""
        self.num_consumed = num_consumed
        self._was_moved = True

    def end(self) -> None:
        """Yield no more blocks."""
        self._num_blocks = self.num_consumed

    def __iter__(self) -> Iterator[Batch]:
        while self.num_consumed < self._num_blocks:
            self._was_moved = False
            for micro_batch in self._batches_from_position():
                self.num_consumed += self._batch.micro_batch_blocks * self._batch.num_groups
                yield micro_batch
                if self._was_moved or self.num_consumed >= self._num_blocks:
                    break

    def _batches_from_position(self) -> Iterator[Batch]:
        return iter(
            WorkerLoader(
                self.dataset,
                batch_sampler=self._micro_batches(self.num_consumed),
                generator=torch.Generator(),  # the seeds of workers must not move the random state of dropout
                worker_init_fn=ignore_stop_signals,
                **self._loader_options,
            )
        )

    def _micro_batches(self, first: int) -> Iterator[list[int]]:
        """The blocks of each micro batch of this group."""
        size, num_groups = self._batch.micro_batch_blocks, self._batch.num_groups
        micro_steps = max(1, LOOK_AHEAD // (size * num_groups))
        while True:
            ids = self._stream.block_ids(first, micro_steps * size * num_groups)
            yield from ids.reshape(micro_steps, num_groups, size)[:, self._group].tolist()
            first += micro_steps * size * num_groups
