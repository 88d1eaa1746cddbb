"""The plan of a run as a table for the terminal, 79 columns wide at most."""

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pretraining.planning.cost import Costs, DiskUsage
from pretraining.planning.flops import num_parameters
from pretraining.planning.footprint import MOMENTS, Footprint, Part, footprint
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import TrainingLayout
from pretraining.planning.machine import MachineSpec
from pretraining.planning.suggestions import Suggestion

NAME_WIDTH, VALUE_WIDTH, LINE_WIDTH = 30, 18, 79


@dataclass(frozen=True)
class PlannedRun:
    """All that the table says."""

    model: str
    notes: tuple[str, ...]
    layout: TrainingLayout
    machine: MachineSpec
    batch: GlobalBatch
    num_steps: int | None  # None where neither the blocks nor a flag tell
    costs: Costs | None  # None for a GPU whose peak is not known
    kept: DiskUsage


def plan_table(run: PlannedRun, remedies: list[Suggestion], *, problems: list[str], is_certain: bool = True) -> str:
    """The whole table; `problems` are not certain when they are of what is assumed alone."""
    needed = footprint(run.layout, has_gpu=run.machine.has_gpu)
    lines = [f"plan: {run.model} on {run.machine.name}; nothing is started"]
    lines += [line for note in run.notes for line in _wrapped(note, "  ")]
    lines += ["", "run", *_run_lines(run)]
    if run.machine.has_gpu:
        lines += ["", *_gpu_lines(needed, run.machine)]
    lines += ["", *_host_lines(needed, run.machine)]
    lines += ["", "disk", *_disk_lines(run.kept)]
    lines += ["", *_cost_lines(run.costs, has_gpu=run.machine.has_gpu)]
    lines += ["", *_verdict_lines(problems, remedies, is_certain=is_certain)]
    return "\n".join(lines) + "\n"


def _run_lines(run: PlannedRun) -> Iterator[str]:
    batch, parameters = run.batch, num_parameters(run.layout.shape)
    yield _line("parameters", f"{parameters:,}", f"{run.layout.precision}, {run.layout.optimizer}")
    made = (batch.micro_batch_blocks, batch.gradient_accumulation_steps, batch.num_groups)
    yield _line("blocks per step", f"{batch.blocks:,}", " x ".join(f"{number:,}" for number in made))
    yield _line("tokens per step", f"{batch.tokens:,}", f"blocks of {batch.block_length:,}")
    yield _line("gradients added up in", run.layout.grad_accum_dtype)
    if run.num_steps is None:
        yield _line("steps", "not known", "give --max_tokens N")
    else:
        tokens = run.num_steps * batch.tokens
        yield _line("steps", f"{run.num_steps:,}")
        yield _line("tokens", f"{tokens:,}", f"{tokens / parameters:,.2f} a parameter")


def _gpu_lines(needed: Footprint, machine: MachineSpec) -> Iterator[str]:
    yield _heading("memory of each GPU", "GB")
    yield from _part_lines(needed.on_gpu)
    room = machine.gpu_bytes or 0
    most = f"of {room / 1e9:,.1f}, {needed.peak_moment}"
    yield _line("most", _gb(needed.gpu_bytes), most)


def _host_lines(needed: Footprint, machine: MachineSpec) -> Iterator[str]:
    machines = -(-machine.num_processes // machine.num_local_processes)
    yield _heading("host memory" + (f" of each of {machines} machines" if machines > 1 else ""), "GB")
    yield from _part_lines(needed.on_host)
    available = "--host_memory unknown" if machine.host_bytes is None else f"of {machine.host_bytes / 1e9:,.1f}"
    yield _line("most", _gb(needed.host_bytes), available)


def _part_lines(parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        yield _line(part.name, _gb(part.num_bytes), "" if part.moments == MOMENTS else _said_moments(part.moments))


def _said_moments(moments: tuple[str, ...]) -> str:
    return moments[0] if len(moments) == 1 else "forward and backward"


def _disk_lines(kept: DiskUsage) -> Iterator[str]:
    if kept.checkpoint_bytes:
        yield _line("checkpoint", f"{_gb(kept.checkpoint_bytes)} GB")
        yield _line("checkpoints kept", f"{_gb(kept.checkpoints_bytes)} GB", kept.said_checkpoints)
    else:
        yield _line("checkpoints", "none", "--save_strategy no")
    if kept.num_exports:
        yield _line("exported models", f"{_gb(kept.exports_bytes)} GB", f"{kept.num_exports:,}")


def _cost_lines(costs: Costs | None, *, has_gpu: bool) -> Iterator[str]:
    if costs is None:
        yield f"time: not known, {'this GPU is not listed' if has_gpu else 'give --gpu_type'}"
        return
    yield f"time, assumed MFU of {costs.mfu:.1%}" + ("" if costs.tokens_are_known else ", for 10^9 tokens")
    yield _line("tokens/s/GPU", f"{costs.tokens_per_second_per_gpu:,.0f}")
    yield _line("hours", f"{costs.hours:,.1f}", f"{costs.hours / 24:,.1f} days")
    yield _line("GPU hours", f"{costs.gpu_hours:,.0f}")
    yield _line("energy of the GPUs, at most", f"{costs.kilowatt_hours:,.0f} kWh", f"{costs.board_watts} W each")
    if costs.price is not None:
        yield _line("price", f"{costs.price:,.2f}", f"{costs.price_per_gpu_hour:g} a GPU hour")


def _verdict_lines(problems: list[str], remedies: list[Suggestion], *, is_certain: bool) -> Iterator[str]:
    if not problems:
        yield "it fits"
        return
    verdict = "it does not fit: needs" if is_certain else "it is tight, and may run out of memory: with what is assumed"
    yield from _wrapped(f"{verdict} {' and '.join(problems)}", "  ")
    fitting = "what fits, cheapest change first (add one line; --num_gpus goes to deepspeed):"
    yield fitting if remedies else "no change of flags fits"
    for remedy in remedies:
        yield f"  {' '.join(remedy.flags)}"
        yield f"      {remedy.needs}"


def _heading(name: str, value: str) -> str:
    return f"{name:<{NAME_WIDTH + 2}}{value:>{VALUE_WIDTH}}"


def _line(name: str, value: str, remark: str = "") -> str:
    return f"  {name:<{NAME_WIDTH}}{value:>{VALUE_WIDTH}}  {remark}".rstrip()


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.2f}"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, LINE_WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
