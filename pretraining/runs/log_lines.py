"""Records as people read them: a line of figures, the most important first; the full truth is in metrics.jsonl."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pretraining.runs.run_cost import JOULES_PER_KILOWATT_HOUR, three_digits

LINE_COLUMNS = 250  # of a plain line, which goes into files more than onto terminals
EVALUATIONS = (("eval", "validation"), ("test", "test"))
TIME_PARTS = ("data", "forward_backward", "optimizer", "save", "evaluation", "other")
LEAST_SHARE = 0.005  # of the time, that is told
MEMORY = {"peak_memory_bytes": "peak", "host_memory_bytes": "host"}  # where there is no GPU, the host's
# The figures of a step that have no rule of their own, in the order of their importance.
MOST_WANTED = {
    "tokens_per_second_per_gpu": "{:,.0f} tokens/s/GPU",
    "learning_rate": "lr {:.2e}",
    "grad_norm": "grad norm {:.3f}",
}
LESS_WANTED = {
    "perplexity": "perplexity {:,.1f}",
    "tokens": "{:,} tokens",
    "epoch": "epoch {:.2f}",
    "tflops_per_second_per_gpu": "{:.3g} TFLOP/s/GPU",
    "gpu_power_watts": "{:,.0f} W",
    "overall_tokens_per_second_per_gpu": "{:,.0f} tokens/s/GPU overall",
    "blocks_per_second": "{:,.1f} blocks/s",
}


def log_lines(record: Mapping[str, float], *, max_steps: int, now: float) -> list[str]:
    """A record in lines; nothing for records that are of interest only in the file. `now` in unix seconds."""
    step = f"step {int(record['step']):>{len(str(max_steps))}}/{max_steps}"
    if "loss" in record:
        return [fitting([step, *training_figures(record, now=now)], LINE_COLUMNS)]
    for prefix, name in EVALUATIONS:
        if f"{prefix}_loss" in record:
            return [f"{step}  {line}" for line in _evaluation_lines(record, f"{prefix}_", name)]
    return []


def fitting(figures: Iterable[str], columns: int) -> str:
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
    if "seconds_left" in record:
        figures.append(_said_end(record["seconds_left"], now=now))
    figures += [words.format(record[name]) for name, words in MOST_WANTED.items() if name in record]
    if "mfu" in record:
        figures.append(said_mfu(record))
    memory = next((name for name in MEMORY if name in record), None)
    if memory is not None:
        in_use = f" ({said_bytes(record['gpu_memory_bytes'])} in use)" if "gpu_memory_bytes" in record else ""
        figures.append(f"{said_bytes(record[memory])} {MEMORY[memory]}{in_use}")
    if "accuracy" in record:
        figures.append(f"accuracy {100 * record['accuracy']:.1f} %")
    if "loss_scale" in record:
        figures.append(f"scale {record['loss_scale']:.0f}")
    if "gpu_utilization" in record:
        figures.append(f"GPU {100 * record['gpu_utilization']:.0f} %")
    return figures + _less_wanted(record)


def _less_wanted(record: Mapping[str, float]) -> list[str]:
    figures = [words.format(record[name]) for name, words in LESS_WANTED.items() if name in record]
    if record.get("interval_seconds"):
        shares = {part: record[f"{part}_seconds"] / record["interval_seconds"] for part in TIME_PARTS}
        told = [
            f"{part.replace('_', '+')} {100 * share:.0f} %" for part, share in shares.items() if share > LEAST_SHARE
        ]
        figures.append(f"time: {', '.join(told)}")
    return figures


def _said_end(seconds_left: float, *, now: float) -> str:
    """The time left, and when that is; with the date when that is another day."""
    if seconds_left <= 0:
        return "0 s left"
    end = time.localtime(now + seconds_left)
    is_today = end[:3] == time.localtime(now)[:3]
    return f"{duration(seconds_left)} left ({time.strftime('%H:%M' if is_today else '%b %d %H:%M', end)})"


def said_mfu(figures: Mapping[str, float]) -> str:
    """MFU by both conventions of how much of attention's square counts."""
    causal = f" (causal {100 * figures['mfu_causal']:.1f} %)" if "mfu_causal" in figures else ""
    return f"MFU {100 * figures['mfu']:.1f} %{causal}"


def said_bytes(num_bytes: float) -> str:
    """Bytes as people say them.

    >>> [said_bytes(812e6), said_bytes(71.24e9)]
    ['812 MB', '71.2 GB']
    """
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def summary_lines(figures: Mapping[str, float]) -> Iterator[str]:
    """A summary as people read it; what is not known is left out."""
    total = max(figures["total_seconds"], 1e-9)
    shares = (f"{part.replace('_', ' and ')} {100 * figures[f'{part}_seconds'] / total:.1f} %" for part in TIME_PARTS)
    yield f"time: {figures['num_steps']:,.0f} steps in {duration(total)}: {', '.join(shares)}"
    if "overall_tokens_per_second_per_gpu" in figures:
        said = f"speed: {figures['overall_tokens_per_second_per_gpu']:,.0f} tokens/s/GPU, "
        said += f"{figures['blocks_per_second']:,.1f} blocks/s, {figures['tflops_per_second_per_gpu']:,.3g} TFLOP/s/GPU"
        mfu = f", {said_mfu(figures)}" if "mfu" in figures else ""
        yield f"{said}{mfu}, without the first interval of the log, saves and evaluations"
    names = {"peak_memory_bytes": "on the fullest GPU at its peak", "peak_host_memory_bytes": "of host memory at most"}
    said_memory = [f"{said_bytes(figures[name])} {words}" for name, words in names.items() if name in figures]
    if said_memory:
        yield f"memory: {', '.join(said_memory)}"
    if "energy_joules" in figures:
        energy = three_digits(figures["energy_joules"] / JOULES_PER_KILOWATT_HOUR)
        yield f"energy of the GPUs: {energy} kWh"


def block_line(record: Mapping[str, Any]) -> str:
    """A block that an event names, with its documents."""
    documents = ", ".join(f"{place['file']}:{place['line']} ({place['source']})" for place in record["documents"])
    loss = record["block_loss"]
    shown = f"{loss:.4f}" if isinstance(loss, float) else loss
    return f"block {record['block']:,} of {record['dataset']}, loss {shown}: {documents or 'documents unknown'}"


def _evaluation_lines(record: Mapping[str, float], prefix: str, name: str) -> list[str]:
    """The figures in total, and under them those of each source, the losses below each other."""
    start = f"{prefix}loss/"
    sources = [key.removeprefix(start) for key in record if key.startswith(start)]
    width = max(len(name), *(len(source) + 2 for source in sources)) if sources else len(name)
    lines = [_evaluation_figures(record, prefix, "", f"{name:{width}}")]
    return lines + [_evaluation_figures(record, prefix, f"/{source}", f"  {source:{width - 2}}") for source in sources]


def _evaluation_figures(record: Mapping[str, float], prefix: str, suffix: str, name: str) -> str:
    figures = [
        f"{name} loss {record[f'{prefix}loss{suffix}']:.4f}",
        f"perplexity {record[f'{prefix}perplexity{suffix}']:,.2f}",
        f"accuracy {100 * record[f'{prefix}accuracy{suffix}']:.1f} %",
    ]
    if f"{prefix}bits_per_byte{suffix}" in record:
        figures.append(f"{record[f'{prefix}bits_per_byte{suffix}']:.3f} bits/byte")
    return "  ".join(figures)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> [duration(7.2), duration(200), duration(7_500), duration(200_000)]
    ['7 s', '3 min 20 s', '2 h 05 min', '2 d 07 h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
