"""Records as lines of the log, the most important metrics first; metrics.jsonl has all of them."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pretraining.cli.logs import counted
from pretraining.runs.history import JOULES_PER_KILOWATT_HOUR, format_significant
from pretraining.runs.tracking.metrics_file import EVALUATIONS, TIME_PARTS, describe_part, format_task, task_metrics
from pretraining.system.formatting import format_bytes, format_duration

MIN_SHOWN_SHARE = 0.005  # of the time
MEMORY = {"peak_memory_bytes": "peak", "host_memory_bytes": "host"}  # without a GPU, that of the host
Metrics = Mapping[str, Any]


def log_lines(record: Metrics, *, max_steps: int, now: float, columns: int) -> list[str]:
    """A record in lines of at most `columns`; none for records that only metrics.jsonl has. `now` in unix seconds."""
    step = f"step {int(record['step']):>{len(str(max_steps))}}/{max_steps}"
    if "loss" in record:
        return [fit_to_width([step, *training_metrics(record, now=now)], columns)]
    for prefix, name in EVALUATIONS.items():
        if f"{prefix}_loss" in record:
            name += describe_part(record, prefix)
            found = [*_evaluation_metrics(record, prefix, name), *_task_metrics(record)]
            return [fit_to_width([step, *metrics], columns) for metrics in found]
    return []


def per_process(metrics: Metrics) -> str:
    """The unit of a speed: per GPU where there are any (each process has one), otherwise per process."""
    return "/GPU" if "peak_memory_bytes" in metrics else " per process"


def fit_to_width(metrics: Iterable[str], columns: int) -> str:
    """The metrics side by side, without those that do not fit after the ones before them.

    >>> fit_to_width(["loss 2.5", "1 h 05 min left", "lr 3e-4"], 17)
    'loss 2.5  lr 3e-4'
    """
    line = ""
    for metric in metrics:
        longer = f"{line}  {metric}" if line else metric
        line = longer if len(longer) <= columns else line
    return line


def training_metrics(record: Metrics, *, now: float) -> list[str]:
    """The metrics of a step, the most important first; the smoothed loss in parentheses."""
    smoothed = f" ({record['smoothed_loss']:.4f})" if "smoothed_loss" in record else ""
    seconds_left = max(record.get("seconds_left", 0.0), 0.0)
    per = per_process(record)
    memory = next((name for name in MEMORY if name in record), None)
    in_use = f" ({format_bytes(record['gpu_memory_bytes'])} in use)" if "gpu_memory_bytes" in record else ""
    end = f"ends {_format_end(now + seconds_left, now=now)}" if seconds_left else None
    total = record.get("interval_seconds")
    shown = [
        f"loss {record['loss']:.4f}{smoothed}",
        f"{record['non_finite_steps']:.0f} non-finite" if record.get("non_finite_steps") else None,
        f"{format_duration(seconds_left)} left" if "seconds_left" in record else None,
        _format(record, "tokens_per_second_per_gpu", f"{{:,.0f}} tokens/s{per}"),
        _format(record, "learning_rate", "lr {:.2e}"),
        _format(record, "mfu", "MFU {:.1%}"),
        _format(record, "grad_norm", "grad norm {:.3f}"),
        end,
        f"{format_bytes(record[memory])} {MEMORY[memory]}{in_use}" if memory is not None else None,
        _format(record, "accuracy", "accuracy {:.1%}"),
        _format(record, "mfu_causal", "causal MFU {:.1%}"),
        _format(record, "loss_scale", "scale {:.0f}"),
        _format(record, "gpu_utilization", "GPU {:.0%}"),
        _format(record, "perplexity", "perplexity {:,.1f}"),
        _format(record, "tokens", "{:,} tokens"),
        _format(record, "epoch", "epoch {:.2f}"),
        _format(record, "tflops_per_second_per_gpu", f"{{:.3g}} TFLOP/s{per}"),
        _format(record, "gpu_power_watts", "{:,.0f} W"),
        _format(record, "overall_tokens_per_second_per_gpu", f"{{:,.0f}} tokens/s{per} overall"),
        _format(record, "blocks_per_second", "{:,.1f} blocks/s"),
        f"time: {_format_shares(record, total)}" if total else None,
    ]
    return [metric for metric in shown if metric is not None]


def _format(record: Metrics, name: str, template: str) -> str | None:
    """A metric as text, e.g. `12.0 %`; None where the record does not have it."""
    return template.format(record[name]).replace("%", " %") if name in record else None


def _format_shares(metrics: Metrics, total_seconds: float) -> str:
    """The parts of a time that are half a percent of it or more, the largest first."""
    shares = {part: metrics[f"{part}_seconds"] / total_seconds for part in TIME_PARTS}
    shown = [part for part in sorted(shares, key=lambda part: -shares[part]) if shares[part] > MIN_SHOWN_SHARE]
    return ", ".join(f"{part.replace('_', '+')} {100 * shares[part]:.0f} %" for part in shown)


def _format_end(end: float, *, now: float) -> str:
    """A time of day, with the date if that is another day."""
    is_today = time.localtime(end)[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M" if is_today else "%b %d %H:%M", time.localtime(end))


def format_mfu(metrics: Metrics) -> str:
    """MFU with full attention, and with the half of it that a causal mask needs."""
    causal = f" (causal {100 * metrics['mfu_causal']:.1f} %)" if "mfu_causal" in metrics else ""
    return f"MFU {100 * metrics['mfu']:.1f} %{causal}"


def summary_lines(metrics: Metrics) -> Iterator[str]:
    """The summary of a run, line by line; unknown metrics are omitted."""
    total, steps = max(metrics["total_seconds"], 1e-9), counted(int(metrics["num_steps"]), "step")
    yield f"time: {steps} in {format_duration(total)}: {_format_shares(metrics, total)}"
    if "overall_tokens_per_second_per_gpu" in metrics:
        per = per_process(metrics)
        speeds = [f"{metrics['overall_tokens_per_second_per_gpu']:,.0f} tokens/s{per}"]
        speeds += [f"{metrics['blocks_per_second']:,.1f} blocks/s"]
        speeds += [f"{metrics['tflops_per_second_per_gpu']:,.3g} TFLOP/s{per}"]
        speeds += [format_mfu(metrics)] if "mfu" in metrics else []
        yield f"speed: {', '.join(speeds)} (steps only, without the first interval)"
    names = {"peak_memory_bytes": "on the fullest GPU at its peak", "peak_host_memory_bytes": "of host memory at most"}
    memory = [f"{format_bytes(metrics[name])} {words}" for name, words in names.items() if name in metrics]
    if memory:
        yield f"memory: {', '.join(memory)}"
    if "energy_joules" in metrics:
        energy = format_significant(metrics["energy_joules"] / JOULES_PER_KILOWATT_HOUR)
        yield f"energy of the GPUs: {energy} kWh"


def describe_block(record: Metrics) -> str:
    """A block that an event names, with its documents."""
    documents = ", ".join(f"{place['file']}:{place['line']} ({place['source']})" for place in record["documents"])
    loss = record["block_loss"]
    shown = f"{loss:.4f}" if isinstance(loss, float) else loss
    return f"block {record['block']:,} of {record['dataset']}, loss {shown}: {documents or 'documents unknown'}"


def _evaluation_metrics(record: Metrics, prefix: str, name: str) -> list[list[str]]:
    """The metrics of a split, then those of each source with the losses aligned."""
    start = f"{prefix}_loss/"
    sources = [key.removeprefix(start) for key in record if key.startswith(start)]
    width = max([len(name), *(len(source) + 2 for source in sources)])
    found = [_metrics_of(record, prefix, "", f"{name:{width}}")]
    return found + [_metrics_of(record, prefix, f"/{source}", f"  {source:{width - 2}}") for source in sources]


def _task_metrics(record: Metrics) -> Iterator[list[str]]:
    """The metrics of each downstream task; chance and standard errors show which accuracies mean something."""
    found = {name: format_task(metrics) for name, metrics in task_metrics(record).items()}
    width = max(map(len, found), default=0)
    for task, metrics in found.items():
        shown = [f"{name.replace('_', ' ')} {value.replace('%', ' %')}" for name, value in metrics.items()]
        yield [f"task {task:{width}} {shown[0]}", *shown[1:]]


def _metrics_of(record: Metrics, prefix: str, suffix: str, name: str) -> list[str]:
    """The most important first; bits per byte are comparable between tokenizers."""
    shown = [f"{name} loss {record[f'{prefix}_loss{suffix}']:.4f}"]
    if f"{prefix}_bits_per_byte{suffix}" in record:
        shown.append(f"{record[f'{prefix}_bits_per_byte{suffix}']:.3f} bits/byte")
    perplexity, accuracy = record[f"{prefix}_perplexity{suffix}"], record[f"{prefix}_accuracy{suffix}"]
    return [*shown, f"perplexity {perplexity:,.2f}", f"accuracy {100 * accuracy:.1f} %"]
