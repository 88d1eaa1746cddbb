"""The plan of a run as a table for the terminal, at most 79 columns wide."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pretraining.planning.cost import Costs, DiskUsage
from pretraining.planning.evaluation import EvaluationPlan
from pretraining.planning.flops import num_parameters
from pretraining.planning.footprint import ALWAYS, PHASES, Footprint, Part, footprint
from pretraining.planning.global_batch import GlobalBatch
from pretraining.planning.layout import USABLE_SHARE, MachineSpec, TrainingLayout
from pretraining.planning.speed import Speeds, host_traffic, link_bytes_per_second
from pretraining.planning.suggestions import Suggestion, nothing_fits
from pretraining.planning.zero.traffic import sent_per_step

NAME_WIDTH, VALUE_WIDTH, LINE_WIDTH = 30, 18, 79


@dataclass(frozen=True)
class PlannedRun:
    """The content of the table."""

    model: str
    notes: tuple[str, ...]
    layout: TrainingLayout
    machine: MachineSpec
    batch: GlobalBatch
    num_steps: int | None  # None where it follows from blocks that are not here
    costs: Costs | None  # None for a GPU whose peak is unknown
    disk: DiskUsage
    speeds: Speeds
    evaluation: EvaluationPlan | None = None  # None without blocks
    phases: tuple[str, ...] = ()
    obstacle: str | None = None  # with which the run would not start, other than memory

    @property
    def footprint(self) -> Footprint:
        """The memory that the run needs."""
        return footprint(self.layout, has_gpu=self.machine.has_gpu)


def plan_table(run: PlannedRun, suggestions: list[Suggestion], *, problems: list[str], is_certain: bool = True) -> str:
    """Format the table; `problems` are not certain where only what is assumed does not fit."""
    needed = run.footprint
    lines = [f"plan: {run.model} on {run.machine.name}; nothing is started"]
    lines += [line for note in run.notes for line in _wrapped(note)]
    lines += ["", "run", *_run_lines(run)]
    lines += ["", *(line for phase in run.phases for line in _wrapped(phase))] if run.phases else []
    if run.machine.has_gpu:
        lines += ["", *_gpu_lines(needed, run.machine)]
    lines += ["", *_host_lines(needed, run.machine), *_offload_lines(run), *_sent_lines(run)]
    lines += ["", "disk", *_disk_lines(run.disk)]
    lines += ["", *_cost_lines(run)]
    lines += ["", *_verdict_lines(run, problems, suggestions, is_certain=is_certain)]
    return "\n".join(lines) + "\n"


def _run_lines(run: PlannedRun) -> Iterator[str]:
    batch, parameters = run.batch, num_parameters(run.layout.shape)
    yield _line("parameters", f"{parameters:,}", f"{run.layout.precision}, {run.layout.optimizer}")
    factors = (batch.micro_batch_blocks, batch.gradient_accumulation_steps, batch.num_groups)
    yield _line("blocks per step", f"{batch.blocks:,}", " x ".join(f"{number:,}" for number in factors))
    yield _line("tokens per step", f"{batch.tokens:,}", f"blocks of {batch.block_length:,}")
    yield _line("gradients accumulated in", run.layout.grad_accum_dtype)
    if run.num_steps is None:
        yield _line("steps", "not known", "use --max_tokens N")
    else:
        tokens = run.num_steps * batch.tokens
        yield _line("steps", f"{run.num_steps:,}")
        yield _line("tokens", f"{tokens:,}", f"{tokens / parameters:,.2f} per parameter")
    if run.evaluation is not None:
        note = "estimated without tasks" if run.evaluation.has_tasks else "estimated by FLOPs"
        yield _line("evaluation, of the time", f"{run.evaluation.share_during_training:.1%}", note)
        yield _line("  with the final one", f"{run.evaluation.share:.1%}")


def _gpu_lines(needed: Footprint, machine: MachineSpec) -> Iterator[str]:
    yield _heading("memory of each GPU", "GB")
    yield from _part_lines(needed.on_gpu)
    yield _line("peak", _gb(needed.gpu_bytes), needed.peak_phase)
    yield _line("usable", _gb(machine.usable_gpu_bytes), f"{USABLE_SHARE:.0%} of {(machine.gpu_bytes or 0) / 1e9:,.1f}")


def _offload_lines(run: PlannedRun) -> Iterator[str]:
    """What goes over the PCI Express of one GPU; nothing without an offloaded optimizer."""
    traffic, num_micro_steps = host_traffic(run.layout), run.batch.gradient_accumulation_steps
    if not (run.layout.offload_optimizer and run.machine.has_gpu):
        return
    yield ""
    yield _heading("copied from and to host memory", "GB")
    yield _line("gradient sums", _gb(traffic.sums), "per micro step, both ways")
    if traffic.weights:
        yield _line("weights", _gb(traffic.weights), "per micro step")
    yield _line("once per step", _gb(traffic.step), "gradients, weights")
    yield _line("sum per step", _gb(traffic.per_step(num_micro_steps)), f"{num_micro_steps:,} micro steps")


def _sent_lines(run: PlannedRun) -> Iterator[str]:
    """What one GPU sends to the others, and each machine to the others; nothing of a single process."""
    layout, num_micro_steps = run.layout, run.batch.gradient_accumulation_steps
    if layout.num_processes == 1:
        return
    sent, gpu = sent_per_step(layout, num_micro_steps), run.machine.gpu_type
    yield ""
    yield _heading("sent per step", "GB")
    yield _line("by each GPU" if run.machine.has_gpu else "by each process", _gb(sent.total), zero_name(layout))
    if gpu is not None:
        link = link_bytes_per_second(gpu)
        yield _line("  seconds", f"{sent.total / link:,.2f}", f"at {link / 1e9:,.0f} GB/s")
    if layout.num_processes > layout.num_local_processes:
        network = run.speeds.network_bytes_per_second
        yield _line("into and out of each machine", _gb(sent.to_all), f"{num_micro_steps:,} micro steps")
        yield _line("  seconds", f"{sent.to_all / network:,.2f}", f"at {8 * network / 1e9:,g} Gbit/s (assumed)")


def zero_name(layout: TrainingLayout) -> str:
    """The stage as people know it."""
    hpz = layout.zero.hpz_partition_size
    return f"ZeRO-{layout.stage}" + (f" with hpZ of {hpz}" if hpz > 1 else "")


def _host_lines(needed: Footprint, machine: MachineSpec) -> Iterator[str]:
    machines = -(-machine.num_processes // machine.num_local_processes)
    yield _heading("host memory" + (f" of each of {machines} machines" if machines > 1 else ""), "GB")
    yield from _part_lines(needed.on_host)
    available = "--host_memory unknown" if machine.host_bytes is None else f"of {machine.host_bytes / 1e9:,.1f}"
    yield _line("peak", _gb(needed.host_bytes), available)


def _part_lines(parts: Iterable[Part]) -> Iterator[str]:
    for part in parts:
        phases = part.phases[0] if len(part.phases) == 1 else "forward and backward"
        yield _line(part.name, _gb(part.num_bytes), "" if part.phases in (PHASES, ALWAYS) else phases)


def _disk_lines(disk: DiskUsage) -> Iterator[str]:
    if disk.checkpoint_bytes:
        yield _line("checkpoint", f"{_gb(disk.checkpoint_bytes)} GB")
        yield _line("checkpoints kept", f"{_gb(disk.checkpoints_bytes)} GB", disk.checkpoints_description)
    else:
        yield _line("checkpoints", "none", "--save_strategy no")
    if disk.num_exports:
        yield _line("exported models", f"{_gb(disk.exports_bytes)} GB", f"{disk.num_exports:,}")


def _cost_lines(run: PlannedRun) -> Iterator[str]:
    costs, gpu_type = run.costs, run.machine.gpu_type
    if costs is None:
        reason = "this GPU is not listed" if run.machine.has_gpu else "use --gpu_type"
        yield f"time: not known, {reason if gpu_type is None else 'the listed peak is not that of fp32'}"
        return
    yield "time, from --assumed_hfu and published bandwidths" + ("" if costs.tokens_are_known else ", for 10^9 tokens")
    yield _line("tokens/s/GPU", f"{costs.tokens_per_second_per_gpu:,.0f}", f"MFU {costs.mfu:.1%}")
    yield _line("hours", f"{costs.hours:,.1f}", f"{costs.hours / 24:,.1f} days")
    yield _line("GPU hours", f"{costs.gpu_hours:,.0f}")
    yield _line("energy of the GPUs, at most", f"{costs.kilowatt_hours:,.0f} kWh", f"{costs.board_watts} W each")
    if costs.price is not None:
        yield _line("price", f"{costs.price:,.2f}", f"{costs.price_per_gpu_hour:g} per GPU hour")


def _verdict_lines(
    run: PlannedRun, problems: list[str], suggestions: list[Suggestion], *, is_certain: bool
) -> Iterator[str]:
    if not problems:
        is_known = not run.machine.has_gpu or run.machine.host_bytes is not None
        fits = "it fits" + ("" if is_known else f", with {_gb(run.footprint.host_bytes)} GB of host memory")
        yield fits if run.obstacle is None else f"{fits}, but will not start on these blocks:"
        return
    tight = "it is tight and may run out of memory: needs, with what is assumed,"
    yield from _wrapped(f"{'it does not fit: needs' if is_certain else tight} {' and '.join(problems)}")
    fitting = "what fits, cheapest change first (add one line; --num_gpus goes to deepspeed):"
    yield fitting if suggestions else nothing_fits(run.layout, run.machine)
    for suggestion in suggestions:
        yield from _command_lines(suggestion.flags)
        yield f"      {suggestion.needs}"


def _command_lines(flags: Sequence[str]) -> Iterator[str]:
    """Flags, each with its value, in lines that a shell joins."""
    line = " "
    for flag in flags:
        if len(f"{line} {flag} \\") > LINE_WIDTH + 2 * (flag == flags[-1]):
            yield f"{line} \\"
            line = " "
        line = f"{line} {flag}"
    yield line


def _heading(name: str, value: str) -> str:
    return f"{name:<{NAME_WIDTH + 2}}{value:>{VALUE_WIDTH}}"


def _line(name: str, value: str, remark: str = "") -> str:
    return f"  {name:<{NAME_WIDTH}}{value:>{VALUE_WIDTH}}  {remark}".rstrip()


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
