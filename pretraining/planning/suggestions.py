"""Changes of flags that make a run fit, the cheapest first; each is checked by the same plan."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from pretraining.errors import UserError
from pretraining.planning.fit import certainly_fails, choose_gradient_type, fits, problems
from pretraining.planning.footprint import footprint
from pretraining.planning.global_batch import GlobalBatch, divisors
from pretraining.planning.layout import MAX_GPUS_PER_MACHINE, MachineSpec, TrainingLayout, ZeroSettings
from pretraining.planning.speed import host_traffic
from pretraining.system.formatting import format_bytes

MAX_GPUS = 64
# Of a micro step with an offloaded optimizer: copying bf16 sums, 4 bytes per weight at 50 GB/s, then takes an eighth of
# the time of 8 FLOPs per weight and token at 400 TFLOP/s, whatever the model.
ENOUGH_TOKENS = 32_768
LOSS_TILES = 8
NUM_SHOWN = 3  # in the error line
BLOCKS_FLAG = "--per_device_train_batch_size"
WORKS_ON_ANY_MACHINE = (
    "this works on any machine: make quickstart, or deepspeed --num_gpus=2 pretrain.py --recipe "
    "recipes/quickstart/pretrain.yaml"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suggestion:
    """Flags that make a run fit, with the layout and machine that they lead to."""

    flags: tuple[str, ...]
    layout: TrainingLayout
    machine: MachineSpec

    @property
    def needs(self) -> str:
        """Describe the memory and machines that the run needs with these flags."""
        needed = footprint(self.layout, has_gpu=self.machine.has_gpu)
        on_gpu = f"{format_bytes(needed.gpu_bytes)} per GPU" if self.machine.has_gpu else ""
        shows_host = self.layout.offload_optimizer or not self.machine.has_gpu
        on_host = f"{format_bytes(needed.host_bytes)} of host memory" if shows_host else ""
        num_machines = -(-self.machine.num_processes // self.machine.num_local_processes)
        machines = f"on {num_machines} machines" if num_machines > 1 else ""
        return ", ".join(filter(None, (on_gpu, on_host, machines)))


Change = Callable[[Suggestion, GlobalBatch], Iterator[Suggestion]]


def find_suggestions(layout: TrainingLayout, machine: MachineSpec, batch: GlobalBatch) -> list[Suggestion]:
    """For each kind of change, from the cheapest on, find the fewest changes up to that kind that fit."""
    start = Suggestion((), layout, machine)
    found = []
    for number, change in enumerate([*CHEAP_CHANGES, *EXPENSIVE_CHANGES]):
        earlier = CHEAP_CHANGES[: min(number, NUM_BESIDE_EXPENSIVE if change in EXPENSIVE_CHANGES else number)]
        suggestion = _first_fitting(start, change, earlier, batch)
        if suggestion is not None:
            found.append(suggestion)
    return found


def check_fits(layout: TrainingLayout, machine: MachineSpec, batch: GlobalBatch, *, model: str, force: bool) -> None:
    """Reject a run that needs more memory than the machine has, unless it is forced.

    Where only what is assumed does not fit, log a warning.

    Raises:
        UserError: with the memory needed, the memory available, and what would fit.
    """
    needed = footprint(layout, has_gpu=machine.has_gpu)
    needs = problems(needed, machine)
    if not needs:
        return
    message = f"--model {model}: needs {' and '.join(needs)}"
    if force:
        logger.warning("%s; started all the same (--force)", message)
        return
    found = [" ".join(suggestion.flags) for suggestion in find_suggestions(layout, machine, batch)[:NUM_SHOWN]]
    fitting = f"what fits: {'; or '.join(found)}" if found else nothing_fits(layout, machine)
    if not certainly_fails(needed, machine):
        logger.warning("%s, some of it assumed; it starts, and may run out of memory; %s", message, fitting)
        return
    elsewhere = "" if machine.has_gpu else f"; {WORKS_ON_ANY_MACHINE}"
    raise UserError(f"{message}; {fitting}{elsewhere} (details: --dry_run; override: --force)")


def nothing_fits(layout: TrainingLayout, machine: MachineSpec) -> str:
    """The words for no suggestion; precision is not among the changes, because it changes the losses."""
    is_older = machine.gpu_type is not None and not machine.gpu_type.has_bf16
    hint = "; this GPU has no bf16, try --fp16 true" if is_older and layout.precision == "fp32" else ""
    return f"no change of flags fits{hint}"


def _first_fitting(
    start: Suggestion, change: Change, earlier: Sequence[Change], batch: GlobalBatch
) -> Suggestion | None:
    for number in range(len(earlier) + 1):
        for others in combinations(earlier, number):
            candidates = [start]
            for one in (*others, change):
                candidates = [after for before in candidates for after in one(before, batch)]
            for candidate in candidates:
                if fits(candidate.layout, candidate.machine):
                    return candidate
    return None


@dataclass(frozen=True)
class _FlagChange:
    """One flag, the fields of the layout that it sets, and whether it would change anything."""

    flag: str
    fields: Mapping[str, Any]
    applies: Callable[[TrainingLayout, MachineSpec], bool]

    def __call__(self, before: Suggestion, _: GlobalBatch) -> Iterator[Suggestion]:
        if self.applies(before.layout, before.machine):
            layout = replace(before.layout, **self.fields)
            yield replace(before, flags=(*before.flags, self.flag), layout=layout)


def _higher_stage(before: Suggestion, _: GlobalBatch) -> Iterator[Suggestion]:
    """Yield the configs of higher stages, and plain ZeRO-3 for hpZ; with the optimizer offloaded if it is."""
    layout, zero = before.layout, before.layout.zero
    for stage, configs in STAGE_CONFIGS.items():
        is_less = stage > zero.stage or (stage == 3 and zero.hpz_partition_size > 1)
        if is_less and layout.num_processes > 1:
            changed = _with_zero(layout, ZeroSettings.of_project(layout.shape, stage=stage), before.machine)
            flags = (*before.flags, f"--deepspeed {configs[layout.offload_optimizer]}")
            yield replace(before, flags=flags, layout=changed)


def _with_zero(layout: TrainingLayout, zero: ZeroSettings, machine: MachineSpec) -> TrainingLayout:
    """The layout with other settings of ZeRO, and the type of the sums that follows."""
    layout = replace(layout, zero=zero, frees_gradients_at_once=True)
    return replace(layout, grad_accum_dtype=choose_gradient_type(layout.asked_sums, layout, machine).name)


@dataclass(frozen=True)
class _Offload:
    """A DeepSpeed config that offloads, the fields of the layout that it sets, and as many blocks as fit with it."""

    config: str
    fields: Mapping[str, Any]

    def __call__(self, before: Suggestion, batch: GlobalBatch) -> Iterator[Suggestion]:
        layout, machine = replace(before.layout, **self.fields), before.machine
        if not machine.has_gpu or layout == before.layout or any("--deepspeed" in flag for flag in before.flags):
            return
        is_plain = layout.stage == 3 and layout.zero.hpz_partition_size == 1
        zero = layout.zero if is_plain else ZeroSettings.of_project(layout.shape, stage=3)
        layout = _with_zero(layout, zero, machine)
        offloaded = replace(before, flags=(*before.flags, f"--deepspeed {self.config}"), layout=layout)
        yield from _more_blocks(offloaded, batch)
        yield offloaded


def _smaller_micro_batch(before: Suggestion, batch: GlobalBatch) -> Iterator[Suggestion]:
    """Yield smaller micro batches, the largest first; the global batch stays, in more micro steps."""
    for number in divisors(before.layout.micro_batch_blocks)[1:]:
        layout = replace(before.layout, micro_batch_blocks=number)
        flags = (*before.flags, f"{BLOCKS_FLAG} {number}", *_micro_steps(layout, batch))
        yield replace(before, flags=flags, layout=layout)


def _more_blocks(before: Suggestion, batch: GlobalBatch) -> Iterator[Suggestion]:
    """Yield larger micro batches, the largest first: what offloading copies per micro step stays the same."""
    if any(BLOCKS_FLAG in flag for flag in before.flags):
        return
    blocks = batch.blocks // before.layout.num_groups
    for number in divisors(blocks):
        if before.layout.micro_batch_blocks < number <= ENOUGH_TOKENS // before.layout.block_length:
            layout = replace(before.layout, micro_batch_blocks=number)
            flags = (*before.flags, f"{BLOCKS_FLAG} {number}", *_micro_steps(layout, batch))
            yield replace(before, flags=flags, layout=layout)


def offload_advice(layout: TrainingLayout, machine: MachineSpec, batch: GlobalBatch) -> str:
    """One line on what an offloaded optimizer copies, and the flags that have it copied less often."""
    larger = largest_micro_batch(layout, machine, batch)
    advice = f"use {' '.join(larger.flags)} ({larger.needs})" if larger else "more of them would not fit or help"
    sums = format_bytes(host_traffic(layout).sums)
    return f"offload: {sums} of gradient sums are copied per micro step, whatever its number of blocks; {advice}"


def largest_micro_batch(layout: TrainingLayout, machine: MachineSpec, batch: GlobalBatch) -> Suggestion | None:
    """Find the largest micro batch of an offloaded run that fits; None where it has that."""
    larger = _more_blocks(Suggestion((), layout, machine), batch)
    return next((suggestion for suggestion in larger if fits(suggestion.layout, machine)), None)


def _micro_steps(layout: TrainingLayout, batch: GlobalBatch) -> tuple[str, ...]:
    """The flag that keeps the global batch where --global_batch_tokens does not."""
    if batch.follows_tokens:
        return ()
    return (f"--gradient_accumulation_steps {batch.divided_for(layout).gradient_accumulation_steps}",)


def _more_gpus(before: Suggestion, batch: GlobalBatch) -> Iterator[Suggestion]:
    """Double the GPUs, repeatedly, as long as they divide the global batch."""
    number = before.layout.num_processes * 2
    while before.machine.has_gpu and number <= MAX_GPUS:
        local = min(number, max(MAX_GPUS_PER_MACHINE, before.machine.num_local_processes))
        layout = replace(before.layout, num_processes=number, num_local_processes=local)
        if batch.blocks % (layout.num_groups * layout.micro_batch_blocks) == 0:
            machine = replace(before.machine, num_processes=number, num_local_processes=local)
            nodes = (f"--num_nodes={number // local}",) if number > local else ()
            flags = (*before.flags, *nodes, f"--num_gpus={local}", *_micro_steps(layout, batch))
            yield Suggestion(flags, layout, machine)
        number *= 2


STAGE_CONFIGS = {  # without and with the optimizer offloaded
    2: ("ds_config_zero2.json", "ds_config_zero2_offload_optimizer.json"),
    3: ("ds_config.json", "ds_config_offload_optimizer.json"),
}
# Within one machine's memory, at little or no cost.
CHEAP_CHANGES: tuple[Change, ...] = (
    _higher_stage,
    _smaller_micro_batch,
    _FlagChange(
        f"--loss_tiles {LOSS_TILES}",
        {"loss_tiles": LOSS_TILES},
        lambda layout, _: layout.loss_tiles is None and layout.precision != "fp16",
    ),
    # Forward is computed again in backward: a third more arithmetic.
    _FlagChange("--activation_checkpointing", {"checkpoint_every": 1}, lambda layout, _: layout.checkpoint_every != 1),
    _FlagChange(
        "--grad_accum_dtype bf16",
        {"grad_accum_dtype": "bf16", "asked_sums": "bf16"},
        lambda layout, _: layout.precision == "bf16" and layout.grad_accum_dtype == "fp32",
    ),
    _FlagChange("--optim adamw_bf16", {"optimizer": "adamw_bf16"}, lambda layout, _: layout.optimizer == "adamw"),
)
NUM_BESIDE_EXPENSIVE = 4  # of the cheap changes: not those that reduce precision
# These cost much time or money.
EXPENSIVE_CHANGES: tuple[Change, ...] = (
    _Offload("ds_config_offload_optimizer.json", {"offload_optimizer": True}),
    _Offload("ds_config_offload.json", {"offload_optimizer": True, "offload_parameters": True}),
    _more_gpus,
)
