"""Which blocks a run reads from which position on, phase by phase, also where its data were changed.

Each source continues where it stopped, in the same order, whatever its share was before. A checkpoint records the order
that it was saved in, so a resumed run reads the blocks that an uninterrupted one reads.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pretraining.data.mixture import Mixture
from pretraining.training.data.order import BlockOrder, make_order


@dataclass(frozen=True)
class RecordedStore:
    """A store of a recorded order: its share, the blocks of it that were read before, and its permutations."""

    manifest_sha256: str
    blocks_per_1000: int
    num_read: int
    key: int


@dataclass(frozen=True)
class RecordedOrder:
    """What a checkpoint keeps of the order that it was saved in; `keys` are those of all stores read so far.

    `read` counts the blocks of all stores that were read or skipped before the order began.
    """

    first: int
    stores: list[RecordedStore]
    keys: dict[str, int]
    read: dict[str, int] | None = None  # earlier versions did not record it

    def read_until(self, num_positions: int) -> Counter[str] | None:
        """Count the blocks of each store in the first `num_positions` of the run; None if that was not recorded."""
        if self.read is None or not self.stores:
            return None
        shares = tuple(store.blocks_per_1000 for store in self.stores)
        order = BlockOrder((1,) * len(shares), shares, seed=0, first=self.first)  # sizes and seed do not count here
        manifests = tuple(store.manifest_sha256 for store in self.stores)
        return PhaseOrder(order, manifests, {}, self.read).read_until(num_positions)


@dataclass(frozen=True)
class PhaseOrder:
    """The order of one phase; `manifests` are the sha256 of the manifest.json of each of its stores.

    `keys` are those of all stores that were read so far, `read` the blocks of each that came before this order.
    """

    order: BlockOrder
    manifests: tuple[str, ...]
    keys: Mapping[str, int]
    read: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def beginning(
        cls,
        order: BlockOrder,
        manifests: Sequence[str],
        *,
        first: int,
        read: Mapping[str, int],
        keys: Mapping[str, int],
    ) -> "PhaseOrder":
        """The order from position `first` on, after `read` blocks of each store; stores without a key get the next."""
        known, before = dict(keys), dict(read)
        own = [known.pop(manifest, None) for manifest in manifests]  # a store that is named twice is two sources
        unused = iter(range(len(keys), len(keys) + len(own)))
        own_keys = tuple(next(unused) if key is None else key for key in own)
        num_read = tuple(before.pop(manifest, 0) for manifest in manifests)
        order = replace(order, first=first, num_read=num_read, keys=own_keys)
        all_keys = {**dict(zip(reversed(manifests), reversed(own_keys), strict=True)), **keys}
        return cls(order, tuple(manifests), all_keys, dict(read))

    @property
    def data(self) -> list[tuple[str, int]]:
        """The stores with their shares, in blocks per 1,000."""
        return list(zip(self.manifests, self.order.blocks_per_window, strict=True))

    def count(self, num_blocks: int) -> Counter[str]:
        """Count the blocks of each store since this order began."""
        found: Counter[str] = Counter()
        for manifest, count in zip(self.manifests, self.order.num_consumed(num_blocks), strict=True):
            found[manifest] += count
        return found

    def read_until(self, num_blocks: int) -> Counter[str]:
        """Count the blocks of each store before this order and in it."""
        return Counter(self.read) + self.count(num_blocks)

    def record(self) -> RecordedOrder:
        """What a checkpoint keeps of the order."""
        order = self.order
        stores = zip(self.manifests, order.blocks_per_window, order.num_read, order.keys, strict=True)
        return RecordedOrder(order.first, [RecordedStore(*store) for store in stores], dict(self.keys), dict(self.read))

    def as_recorded(self, saved: RecordedOrder) -> "PhaseOrder | None":
        """This order from where a checkpoint has it begin; None if the checkpoint has that of other data."""
        if self.data != [(store.manifest_sha256, store.blocks_per_1000) for store in saved.stores]:
            return None
        num_read, keys = (tuple(getattr(store, name) for store in saved.stores) for name in ("num_read", "key"))
        order = replace(self.order, first=saved.first, num_read=num_read, keys=keys)
        return replace(self, order=order, keys=saved.keys, read=saved.read or {})


@dataclass(frozen=True)
class RunOrder:
    """The orders of a run from its start on: `start` blocks were consumed, `read` of each store."""

    orders: tuple[PhaseOrder, ...]
    start: int
    read: Mapping[str, int]

    @classmethod
    def of(cls, order: BlockOrder) -> "RunOrder":
        """The order of a run without phases."""
        return cls((PhaseOrder(order, (), {}),), 0, {})

    def after_skips(self, skipped: Sequence[tuple[int, int]]) -> "RunOrder":
        """These orders where a rollback has skipped positions: they count as read, so no later order meets them."""
        if not skipped or len(self.orders) == 1:
            return self
        chain = [self.orders[0]]
        for phase in self.orders[1:]:
            first, before = phase.order.first, chain[-1]
            end = first + num_skipped_before(first, skipped) - num_skipped_before(before.order.first, skipped)
            chain.append(_begin(phase, first, before.read_until(end), before.keys))
        return replace(self, orders=tuple(chain))

    def blocks_by_store(self, num_blocks: int) -> Counter[str]:
        """Count the first `num_blocks` blocks of the run by store."""
        found, point = Counter(self.read), self.start
        ends = [*(phase.order.first for phase in self.orders[1:]), num_blocks]
        for phase, end in zip(self.orders, ends, strict=True):
            if (stop := min(end, num_blocks)) > point:
                found.update(phase.count(stop))
                found.subtract(phase.count(point))
                point = stop
        return found

    def at(self, num_blocks: int) -> PhaseOrder:
        """The order that block number `num_blocks`, counted from 1, was read in."""
        later = (phase for phase in reversed(self.orders) if phase.order.first < num_blocks)
        return next(later, self.orders[0])


def num_skipped_before(number: int, skipped: Sequence[tuple[int, int]]) -> int:
    """Count the skipped positions before the border after `number` consumed blocks.

    `skipped` are half-open ranges of positions, ascending. A range that begins at the border is behind it.
    """
    if number == 0:
        return 0
    last = number - 1
    for start, stop in skipped:
        last += stop - start if last >= start else 0
    return last + 1 - number


def plan_orders(mixture: Mixture, manifests: Sequence[str], *, seed: int) -> tuple[PhaseOrder, ...]:
    """The order of each phase as if it were the only one, with the block numbers of all stores; `manifests` are theirs.

    Raises:
        UserError: when a share is smaller than one block in 1,000.
    """
    sizes = mixture.num_blocks("train")
    places = {part.source: (sum(sizes[:number]), manifests[number]) for number, part in enumerate(mixture.parts)}
    found = []
    for phase in mixture.phases or (mixture,):
        first_ids, own = zip(*(places[part.source] for part in phase.parts), strict=True)
        found.append(PhaseOrder(replace(make_order(phase, seed=seed), first_ids=first_ids), own, {}))
    return tuple(found)


def chain_orders(
    planned: Sequence[PhaseOrder],
    firsts: Sequence[int],
    *,
    start: int,
    read: Mapping[str, int],
    saved: RecordedOrder | None,
    skipped: Sequence[tuple[int, int]] = (),
) -> RunOrder:
    """The orders of the phases that are left after `start` blocks, `read` of each store.

    Phase i begins with block `firsts[i]`. `saved` is the order in the checkpoint at `start`; if it is of other data
    than the phase before `start`, the data were changed, and their order begins there. A phase with the data of the one
    before continues its order. The positions that a rollback before `start` has `skipped` count as read.
    """
    current = _index(firsts, max(0, start - 1))
    resumed = None if saved is None else planned[current].as_recorded(saved)
    if resumed is None:
        current = _index(firsts, start)
        keys, so_far = ({}, None) if saved is None else (saved.keys, saved.read_until(_end(start, saved, skipped)))
        resumed = _begin(planned[current], start, read if so_far is None else so_far, keys)
    elif saved is not None and saved.read is None:
        resumed = replace(resumed, read=Counter(read) - resumed.count(start))
    chain = [resumed]
    for number in range(current + 1, len(planned)):
        if planned[number].data != planned[number - 1].data:
            first, before = firsts[number], chain[-1]
            chain.append(_begin(planned[number], first, before.read_until(first), before.keys))
    return RunOrder(tuple(chain), start, read)


def _end(start: int, saved: RecordedOrder, skipped: Sequence[tuple[int, int]]) -> int:
    """The position in a recorded order at which block number `start` ends it."""
    return start + num_skipped_before(start, skipped) - num_skipped_before(saved.first, skipped)


def _begin(planned: PhaseOrder, first: int, read: Mapping[str, int], keys: Mapping[str, int]) -> PhaseOrder:
    return PhaseOrder.beginning(planned.order, planned.manifests, first=first, read=read, keys=keys)


def _index(firsts: Sequence[int], block: int) -> int:
    """The phase of a block."""
    return max(number for number, first in enumerate(firsts) if number == 0 or first <= block)
