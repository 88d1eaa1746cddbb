"""Records as people read them: a line of figures, the most important first; the full truth is in metrics.jsonl."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pretraining.cli.logs import counted
from pretraining.runs.cost import JOULES_PER_KILOWATT_HOUR, format_significant
from pretraining.system.formatting import format_bytes, format_duration

EVALUATIONS = (("eval", "validation"), ("test", "test"))
TIME_PARTS = ("data", "forward_backward", "optimizer", "save", "evaluation", "other")
MIN_SHOWN_SHARE = 0.005  # of the time, that is told
MEMORY = {"peak_memory_bytes": "peak", "host_memory_bytes": "host"}  # where there is no GPU, the host's
# The figures of a step that have no rule of their own, in the order of their importance.
PRIMARY_FIELDS = {
    "tokens_per_second_per_gpu": "{:,.0f} tokens/s{per}",
    "learning_rate": "lr {:.2e}",
}
SECONDARY_FIELDS = {
    "perplexity": "perplexity {:,.1f}",
    "tokens": "{:,} tokens",
    "epoch": "epoch {:.2f}",
    "tflops_per_second_per_gpu": "{:.3g} TFLOP/s{per}",
    "gpu_power_watts": "{:,.0f} W",
    "overall_tokens_per_second_per_gpu": "{:,.0f} tokens/s{per} overall",
    "blocks_per_second": "{:,.1f} blocks/s",
}


def log_lines(record: Mapping[str, float], *, max_steps: int, now: float, columns: int) -> list[str]:
    """A record in lines; nothing for records that are of interest only in the file. `now` in unix seconds.

    A figure for which a line of `columns` has no space left is in metrics.jsonl alone.
    """
    step = f"step {int(record['step']):>{len(str(max_steps))}}/{max_steps}"
    if "loss" in record:
        return [fit_to_width([step, *training_figures(record, now=now)], columns)]
    for prefix, name in EVALUATIONS:
        if f"{prefix}_loss" in record:
            return [
                fit_to_width([step, *figures], columns) for figures in _evaluation_figures(record, f"{prefix}_", name)
            ]
    return []


def per_process(figures: Mapping[str, Any]) -> str:
    """What a speed is of: each process has one GPU, or there is none, whose memory would be among the figures."""
    return "/GPU" if "peak_memory_bytes" in figures else " per process"


def fit_to_width(figures: Iterable[str], columns: int) -> str:
    """The figures beside each other, without those for which there is no room after the ones before them.

    >>> fitting(["loss 2.5", "1 h 05 min left", "lr 3e-4"], 17)
    'loss 2.5  lr 3e-4'
    """
    line = ""
    for figure in figures:
        longer = f"{line}  {figure}" if line else figure
        line = longer if len(longer) <= columns else line
    return line


def training_figures(record: Mapping[str, float], *, now: float) -> list[str]:
    """The figures of a step, the most important first; the smoothed loss in parentheses."""
    smoothed = f" ({record['smoothed_loss']:.4f})" if "smoothed_loss" in record else ""
    figures = [f"loss {record['loss']:.4f}{smoothed}"]
    if record.get("non_finite_steps"):
        figures.append(f"{record['non_finite_steps']:.0f} non-finite")
    seconds_left = max(record.get("seconds_left", 0.0), 0.0)
    if "seconds_left" in record:
        figures.append(f"{format_duration(seconds_left)} left")
    figures += _worded(record, PRIMARY_FIELDS)
    if "mfu" in record:
        figures.append(f"MFU {100 * record['mfu']:.1f} %")
    if "grad_norm" in record:
        figures.append(f"grad norm {record['grad_norm']:.3f}")
    if seconds_left:
        figures.append(f"ends {_said_end(now + seconds_left, now=now)}")
    return figures + _wanted(record)


def _wanted(record: Mapping[str, float]) -> list[str]:
    """The figures of the machine, and others that have a rule of their own."""
    figures = []
    memory = next((name for name in MEMORY if name in record), None)
    if memory is not None:
        in_use = f" ({format_bytes(record['gpu_memory_bytes'])} in use)" if "gpu_memory_bytes" in record else ""
        figures.append(f"{format_bytes(record[memory])} {MEMORY[memory]}{in_use}")
    if "accuracy" in record:
        figures.append(f"accuracy {100 * record['accuracy']:.1f} %")
    if "mfu_causal" in record:
        figures.append(f"causal MFU {100 * record['mfu_causal']:.1f} %")
    if "loss_scale" in record:
        figures.append(f"scale {record['loss_scale']:.0f}")
    if "gpu_utilization" in record:
        figures.append(f"GPU {100 * record['gpu_utilization']:.0f} %")
    return figures + _less_wanted(record)


def _worded(record: Mapping[str, float], wanted: Mapping[str, str]) -> list[str]:
    per = per_process(record)
    return [words.format(record[name], per=per) for name, words in wanted.items() if name in record]


def _less_wanted(record: Mapping[str, float]) -> list[str]:
    figures = _worded(record, SECONDARY_FIELDS)
    if record.get("interval_seconds"):
        figures.append(f"time: {_shares(record, record['interval_seconds'])}")
    return figures


def _shares(figures: Mapping[str, float], total_seconds: float) -> str:
    """The parts of a time that are half a percent of it or more, the largest first."""
    shares = {part: figures[f"{part}_seconds"] / total_seconds for part in TIME_PARTS}
    shown = [part for part in sorted(shares, key=lambda part: -shares[part]) if shares[part] > MIN_SHOWN_SHARE]
    return ", ".join(f"{part.replace('_', '+')} {100 * shares[part]:.0f} %" for part in shown)


def _said_end(end: float, *, now: float) -> str:
    """A time of day; with the date when that is another day."""
    is_today = time.localtime(end)[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M" if is_today else "%b %d %H:%M", time.localtime(end))


def format_mfu(figures: Mapping[str, float]) -> str:
    """MFU by both conventions of how much of attention's square counts."""
    causal = f" (causal {100 * figures['mfu_causal']:.1f} %)" if "mfu_causal" in figures else ""
    return f"MFU {100 * figures['mfu']:.1f} %{causal}"


def summary_lines(figures: Mapping[str, float]) -> Iterator[str]:
    """A summary as people read it; what is not known is left out."""
    total = max(figures["total_seconds"], 1e-9)
    yield f"time: {counted(int(figures['num_steps']), 'step')} in {format_duration(total)}: {_shares(figures, total)}"
    if "overall_tokens_per_second_per_gpu" in figures:
        per = per_process(figures)
        said = [f"{figures['overall_tokens_per_second_per_gpu']:,.0f} tokens/s{per}"]
        said += [f"{figures['blocks_per_second']:,.1f} blocks/s"]
        said += [f"{figures['tflops_per_second_per_gpu']:,.3g} TFLOP/s{per}"]
        said += [format_mfu(figures)] if "mfu" in figures else []
        yield f"speed: {', '.join(said)} (steps only, without the first interval)"
    names = {"peak_memory_bytes": "on the fullest GPU at its peak", "peak_host_memory_bytes": "of host memory at most"}
    said_memory = [f"{format_bytes(figures[name])} {words}" for name, words in names.items() if name in figures]
    if said_memory:
        yield f"memory: {', '.join(said_memory)}"
    if "energy_joules" in figures:
        energy = format_significant(figures["energy_joules"] / JOULES_PER_KILOWATT_HOUR)
        yield f"energy of the GPUs: {energy} kWh"


def block_line(record: Mapping[str, Any]) -> str:
    """A block that an event names, with its documents."""
    documents = ", ".join(f"{place['file']}:{place['line']} ({place['source']})" for place in record["documents"])
    loss = record["block_loss"]
    shown = f"{loss:.4f}" if isinstance(loss, float) else loss
    return f"block {record['block']:,} of {record['dataset']}, loss {shown}: {documents or 'documents unknown'}"


def _evaluation_figures(record: Mapping[str, float], prefix: str, name: str) -> list[list[str]]:
    """The figures in total, and after them those of each source, the losses below each other."""
    start = f"{prefix}loss/"
    sources = [key.removeprefix(start) for key in record if key.startswith(start)]
    width = max(len(name), *(len(source) + 2 for source in sources)) if sources else len(name)
    found = [_figures_of(record, prefix, "", f"{name:{width}}")]
    return found + [_figures_of(record, prefix, f"/{source}", f"  {source:{width - 2}}") for source in sources]


def _figures_of(record: Mapping[str, float], prefix: str, suffix: str, name: str) -> list[str]:
    """The most important first; bits per byte can be compared between tokenizers."""
    figures = [f"{name} loss {record[f'{prefix}loss{suffix}']:.4f}"]
    if f"{prefix}bits_per_byte{suffix}" in record:
        figures.append(f"{record[f'{prefix}bits_per_byte{suffix}']:.3f} bits/byte")
    perplexity, accuracy = record[f"{prefix}perplexity{suffix}"], record[f"{prefix}accuracy{suffix}"]
    return [*figures, f"perplexity {perplexity:,.2f}", f"accuracy {100 * accuracy:.1f} %"]
