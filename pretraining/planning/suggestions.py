"""What would make a run fit that does not, the cheapest first; each is checked by the same plan."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import isqrt

from pretraining.errors import UserError
from pretraining.planning.fit import WORKS_ON_ANY_MACHINE, fits, problems
from pretraining.planning.footprint import footprint
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import TrainingLayout
from pretraining.planning.machine import MOST_GPUS_PER_MACHINE, MachineSpec
from pretraining.system.formatting import format_bytes

MOST_GPUS = 64
LOSS_TILES = 8
SHOWN = 3  # in the one line of a refusal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suggestion:
    """Flags that make a run fit, and what it needs with them."""

    flags: tuple[str, ...]
    layout: TrainingLayout
    machine: MachineSpec

    @property
    def needs(self) -> str:
        """What it takes then."""
        needed = footprint(self.layout, has_gpu=self.machine.has_gpu)
        on_gpu = f"{format_bytes(needed.gpu_bytes)} a GPU" if self.machine.has_gpu else ""
        shows_host = self.layout.offload_optimizer or not self.machine.has_gpu
        on_host = f"{format_bytes(needed.host_bytes)} of host memory" if shows_host else ""
        num_machines = -(-self.machine.num_processes // self.machine.num_local_processes)
        machines = f"on {num_machines} machines (--hostfile)" if num_machines > 1 else ""
        return ", ".join(filter(None, (on_gpu, on_host, machines)))


Change = Callable[[Suggestion, GlobalBatch], Iterator[Suggestion]]


def find_suggestions(layout: TrainingLayout, machine: MachineSpec, batch: GlobalBatch) -> list[Suggestion]:
    """For each kind of change, from the cheapest on, the fewest changes up to that kind that fit."""
    start = Suggestion((), layout, machine)
    found = []
    for number, change in enumerate([*MILD_CHANGES, *GREAT_CHANGES]):
        earlier = MILD_CHANGES[: min(number, NUM_MILD_BESIDE_GREAT if change in GREAT_CHANGES else number)]
        remedy = _first_fitting(start, change, earlier, batch)
        if remedy is not None:
            found.append(remedy)
    return found


def check_fits(layout: TrainingLayout, machine: MachineSpec, batch: GlobalBatch, *, model: str, force: bool) -> None:
    """Refuse a run that needs more memory than the machine has, unless it is forced or has run here before.

    Where only what is assumed does not fit, a warning is enough.

    Raises:
        UserError: with what it needs, what there is, and what would fit.
    """
    needed = footprint(layout, has_gpu=machine.has_gpu)
    needs = problems(needed, machine)
    if not needs:
        return
    message = f"--model {model}: needs {' and '.join(needs)}"
    if force:
        logger.warning("%s; --force starts it all the same", message)
        return
    remedies = [" ".join(remedy.flags) for remedy in find_suggestions(layout, machine, batch)[:SHOWN]]
    fitting = f"what fits: {'; or '.join(remedies)}" if remedies else "no change of flags fits"
    if not problems(needed.counted, machine):
        logger.warning("%s, with what is assumed; it starts, and may run out of memory; %s", message, fitting)
        return
    elsewhere = "" if machine.has_gpu else f"; {WORKS_ON_ANY_MACHINE}"
    raise UserError(f"{message}; {fitting}{elsewhere} (--dry_run says it part by part, --force starts it)")


def _first_fitting(
    start: Suggestion, change: Change, earlier: Sequence[Change], batch: GlobalBatch
) -> Suggestion | None:
    for number in range(len(earlier) + 1):
        for others in combinations(earlier, number):
            candidates = [start]
            for one in (*others, change):
                candidates = [after for before in candidates for after in one(before, batch)]
            fitting = (one for one in candidates if fits(one.layout, one.machine))
            remedy = next(fitting, None)
            if remedy is not None:
                return remedy
    return None


def _smaller_micro_batch(before: Suggestion, batch: GlobalBatch) -> Iterator[Suggestion]:
    """The largest first; the global batch stays, in more micro steps."""
    size = before.layout.micro_batch_blocks
    for number in smaller_divisors(size):
        layout = replace(before.layout, micro_batch_blocks=number)
        flags = (*before.flags, f"--per_device_train_batch_size {number}", *_micro_steps(layout, batch))
        yield replace(before, flags=flags, layout=layout)


def smaller_divisors(size: int) -> list[int]:
    """Those of `size` without itself, the largest first."""
    small = [number for number in range(1, isqrt(size) + 1) if size % number == 0]
    return sorted({*small, *(size // number for number in small)} - {size}, reverse=True)


def _micro_steps(layout: TrainingLayout, batch: GlobalBatch) -> tuple[str, ...]:
    """What keeps the global batch where --global_batch_tokens does not."""
    if batch.makes_tokens:
        return ()
    groups = layout.num_processes // layout.sequence_parallel_size
    return (f"--gradient_accumulation_steps {batch.blocks // groups // layout.micro_batch_blocks}",)


def _checkpointing(before: Suggestion, _: GlobalBatch) -> Iterator[Suggestion]:
    """A layer's forward is computed again in backward: a third more arithmetic."""
    if before.layout.checkpoint_every != 1:
        flags = (*before.flags, "--activation_checkpointing")
        yield replace(before, flags=flags, layout=replace(before.layout, checkpoint_every=1))


def _loss_tiles(before: Suggestion, _: GlobalBatch) -> Iterator[Suggestion]:
    if before.layout.loss_tiles is None and before.layout.precision != "fp16":
        flags = (*before.flags, f"--loss_tiles {LOSS_TILES}")
        yield replace(before, flags=flags, layout=replace(before.layout, loss_tiles=LOSS_TILES))


def _half_gradients(before: Suggestion, _: GlobalBatch) -> Iterator[Suggestion]:
    layout = before.layout
    if layout.precision == "bf16" and layout.grad_accum_dtype == "fp32":
        flags = (*before.flags, "--grad_accum_dtype bf16")
        yield replace(before, flags=flags, layout=replace(layout, grad_accum_dtype="bf16"))


def _half_moments(before: Suggestion, _: GlobalBatch) -> Iterator[Suggestion]:
    if before.layout.optimizer == "adamw":
        flags = (*before.flags, "--optim adamw_bf16")
        yield replace(before, flags=flags, layout=replace(before.layout, optimizer="adamw_bf16"))


def _offload_optimizer(before: Suggestion, _: GlobalBatch) -> Iterator[Suggestion]:
    if before.machine.has_gpu and not before.layout.offload_optimizer:
        flags = (*before.flags, "--deepspeed ds_config_offload_optimizer.json")
        yield replace(before, flags=flags, layout=replace(before.layout, offload_optimizer=True))


def _offload_all(before: Suggestion, _: GlobalBatch) -> Iterator[Suggestion]:
    if before.machine.has_gpu and not before.layout.offload_parameters:
        flags = (*before.flags, "--deepspeed ds_config_offload.json")
        layout = replace(before.layout, offload_optimizer=True, offload_parameters=True)
        yield replace(before, flags=flags, layout=layout)


def _more_gpus(before: Suggestion, batch: GlobalBatch) -> Iterator[Suggestion]:
    """Twice as many, and again, as long as they divide the global batch."""
    number = before.layout.num_processes * 2
    while before.machine.has_gpu and number <= MOST_GPUS:
        groups = number // before.layout.sequence_parallel_size
        if batch.blocks % (groups * before.layout.micro_batch_blocks) == 0:
            local = min(number, max(MOST_GPUS_PER_MACHINE, before.machine.num_local_processes))
            layout = replace(before.layout, num_processes=number, num_local_processes=local)
            machine = replace(before.machine, num_processes=number, num_local_processes=local)
            flags = (*before.flags, f"--num_gpus={number}", *_micro_steps(layout, batch))
            yield Suggestion(flags, layout, machine)
        number *= 2


# Within one machine's memory and at little or no cost, and then those that cost much time or money.
MILD_CHANGES: tuple[Change, ...] = (_smaller_micro_batch, _loss_tiles, _checkpointing, _half_gradients, _half_moments)
GREAT_CHANGES: tuple[Change, ...] = (_offload_optimizer, _offload_all, _more_gpus)
NUM_MILD_BESIDE_GREAT = 3  # precision is not given up besides
