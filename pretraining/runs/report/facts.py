"""What a run was, in words and figures: the tables of its report. A fact that its folder does not tell is left out."""

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pretraining.runs.cost import SECONDS_PER_HOUR, format_significant
from pretraining.runs.history import Record
from pretraining.runs.report.charts import TIME_PARTS, known_limit
from pretraining.runs.report.curves import RunCurves
from pretraining.runs.run_lock import is_being_written
from pretraining.runs.tracking.console import block_line, per_process, summary_lines
from pretraining.system.formatting import format_bytes
from pretraining.system.privacy import hide_path, hide_path_of_word, hide_paths_of_command, mask

Facts = dict[str, str]
LEFT_OUT_OF_EVENTS = ("step", "event", "logged_at", "samples")
COMMAND = "command"
MAX_SECONDS = 8e13  # about what a timedelta holds; damaged figures can add up to more


def run_state(run: RunCurves) -> str:
    """Whether the run is finished, stopped, going on, or was cut short."""
    step, num_steps = _last_step(run), run.run_record.get("arguments", {}).get("max_steps", 0)
    if step >= num_steps > 0:
        return "finished"
    turns = [event for event in run.events if event["event"] in ("start", "restart", "stop")]
    if turns and turns[-1]["event"] == "stop" and turns[-1]["step"] >= step:
        return f"stopped ({turns[-1].get('reason', 'as asked')})"
    return "running" if is_being_written(run.run_dir) else "interrupted"


def _last_step(run: RunCurves) -> int:
    """The last one with a record, or the one at which the newest start came to its end: not every step is logged."""
    turns = [event for event in run.events if event["event"] in ("start", "summary")]
    ended_at = turns[-1]["step"] if turns and turns[-1]["event"] == "summary" else 0
    return max(ended_at, run.training.last.get("step", 0))


def report_tables(run: RunCurves) -> dict[str, Facts]:
    """Facts by the heading that they stand under."""
    sections: dict[str, Iterable[tuple[str, str | None]]] = {
        "Command": [(COMMAND, _command(run.run_record))],
        "Run": _run_facts(run),
        "Results": _result_facts(run),
        "Model and data": _model_facts(run.run_record),
        "Speed": _speed_facts(run),
        "Machine": _machine_facts(run.run_record),
        "Software": _software_facts(run.run_record),
    }
    told = {heading: {name: value for name, value in facts if value} for heading, facts in sections.items()}
    return {heading: facts for heading, facts in told.items() if facts}


def _command(record: Record) -> str | None:
    command = record.get("command")
    return hide_paths_of_command(mask(command)) if isinstance(command, str) else None


def _run_facts(run: RunCurves) -> Iterator[tuple[str, str | None]]:
    record, step = run.run_record, _last_step(run)
    arguments = record.get("arguments", {})
    yield "state", run_state(run)
    yield "step", f"{step:,} of {arguments.get('max_steps', 0):,}"
    yield "tokens", _count(run.tokens_at(step))
    yield "begun", _time(run.first_logged_at)
    yield "last record", _time(run.last_logged_at)
    yield "starts", str(len(record.get("earlier_starts", [])) + 1)
    yield "run folder", hide_path(run.run_dir)


def _result_facts(run: RunCurves) -> Iterator[tuple[str, str | None]]:
    last = run.training.last
    yield "training loss, last record", _figure(last.get("loss"), ".4f")
    yield "training loss, smoothed", _figure(last.get("smoothed_loss"), ".4f")
    for prefix, name in (("eval", "validation"), ("test", "test")):
        found = run.evaluations[prefix].last
        yield f"{name} loss", _figure(found.get(f"{prefix}_loss"), ".4f")
        yield f"{name} perplexity", _figure(found.get(f"{prefix}_perplexity"), ",.2f")
        yield f"{name} accuracy", _figure(found.get(f"{prefix}_accuracy"), ".1%")
        yield f"{name} bits per byte", _figure(found.get(f"{prefix}_bits_per_byte"), ".3f")
    limit = known_limit(run)
    if limit is not None:
        yield "limit of bits per byte", f"{limit.bits_per_byte:.4f}"
        yield "validation above the limit", f"{limit.above:.1%}"
    points = [point for point in run.curve("eval_loss") if point.value is not None]
    if points:
        best = min(points, key=lambda point: point.value or 0.0)
        yield "best validation loss", f"{best.value:.4f} at step {best.step:,}"
    yield "spikes", _count(last.get("spikes"))
    yield "steps that were no number", _count(last.get("non_finite_steps"))


def _model_facts(record: Record) -> Iterator[tuple[str, str | None]]:
    arguments, identity = record.get("arguments", {}), record.get("identity", {})
    config = identity.get("model_config", {})
    yield "model", hide_path(str(arguments.get("model", ""))) if arguments.get("model") else None
    yield "parameters", _count(record.get("num_parameters"))
    yield "layers", _count(config.get("num_hidden_layers"))
    yield "hidden size", _count(config.get("hidden_size"))
    yield "vocabulary", _count(config.get("vocab_size"))
    dataset = arguments.get("dataset") or []
    yield "data", " ".join(map(hide_path_of_word, map(str, dataset if isinstance(dataset, list) else [dataset])))
    yield "manifest", ", ".join(part.get("manifest_sha256", "")[:12] for part in identity.get("data", []))
    yield "block length", _count(record.get("block_length"))
    yield "tokens a step", _count(identity.get("global_batch_tokens"))
    yield "precision", identity.get("precision")
    yield "precision of products", identity.get("product_precision")
    yield "optimizer", identity.get("optimizer")
    yield "learning rate", _figure(arguments.get("learning_rate"), ".2e")
    yield "schedule", record.get("schedule", {}).get("shape")


def _speed_facts(run: RunCurves) -> Iterator[tuple[str, str | None]]:
    last, totals, cost = run.training.last, run.training.totals, run.cost
    if cost.hours is not None:
        yield "time, all starts", str(timedelta(seconds=round(min(cost.hours * SECONDS_PER_HOUR, MAX_SECONDS))))
    whole = sum(total.seconds for total in totals.get("interval_seconds", []))
    for name, (part, _) in TIME_PARTS.items():
        if whole and name in totals:
            yield f"share of {part}", f"{sum(total.seconds for total in totals[name]) / whole:.1%}"
    if cost.process_hours is not None and run.run_record.get("hardware", {}).get("gpu"):
        yield "GPU hours", format_significant(cost.process_hours)
    speed = last.get("overall_tokens_per_second_per_gpu")
    unit = f"tokens/s{per_process(last)}"
    yield f"{unit}, this start", _figure(speed, ",.0f")
    if speed is None:
        yield f"{unit}, last interval", _figure(last.get("tokens_per_second_per_gpu"), ",.0f")
    yield "MFU, last interval", _figure(last.get("mfu"), ".1%")
    yield "memory of tensors, largest GPU", _gigabytes(last.get("peak_memory_bytes"))
    energy = cost.kilowatt_hours
    yield "energy of the GPUs", None if energy is None else f"{format_significant(energy)} kWh"


def _machine_facts(record: Record) -> Iterator[tuple[str, str | None]]:
    hardware = record.get("hardware", {})
    used = hardware.get("gpu")
    ours = [gpu for gpu in hardware.get("gpus", []) if gpu.get("name") == used]
    sizes = [gpu["memory_bytes"] for gpu in ours if "memory_bytes" in gpu]
    yield "GPUs", None if used is None else f"{hardware.get('num_processes')} x {used}"
    yield "memory of a GPU", _gigabytes(min(sizes, default=None))
    yield "driver", hardware.get("driver")
    yield "processes", _count(hardware.get("num_processes"))
    yield "CPU", hardware.get("cpu")
    yield "cores", _count(hardware.get("num_cpu_cores"))
    yield "host memory", _gigabytes(hardware.get("memory_bytes"))


def _software_facts(record: Record) -> Iterator[tuple[str, str | None]]:
    git = record.get("git") or {}
    if "commit" in git:
        yield "commit", git["commit"][:12] + (" (with changes)" if git.get("is_dirty") else "")
    yield "Python", record.get("python")
    yield from record.get("packages", {}).items()


def described_limit(run: RunCurves) -> str | None:
    """How far a run is from the limit of its data, in a sentence; None where no limit is known."""
    limit = known_limit(run)
    if limit is None:
        return None
    where = (
        f"{limit.above:.1%} above it" if limit.above >= 0 else f"{-limit.above:.1%} below it: it has seen the answers"
    )
    return (
        f"No model gets below the dashed line, the entropy of the validation text: {limit.bits_per_byte:.4f} bits per "
        f"byte. The last evaluation, {limit.found_bits_per_byte:.4f}, is {where}."
    )


def describe_event(event: Mapping[str, Any]) -> str:
    """What an event says besides its name and step; one of unknown fields or types as it is in the log."""
    told = {name: value for name, value in event.items() if name not in LEFT_OUT_OF_EVENTS and value is not None}
    try:
        if event["event"] == "summary":
            return "; ".join(summary_lines(event))
        return "; ".join(_told_of(name, value) for name, value in told.items())
    except (KeyError, TypeError, ValueError, OverflowError):
        return json.dumps(told, ensure_ascii=False)


def _told_of(name: str, value: Any) -> str:
    """A figure with its unit where its name has one, the blocks of a fault with their documents."""
    if name == "blocks":
        return "; ".join(map(block_line, value))
    if name.endswith("bytes"):
        return format_bytes(value)
    if name.endswith("seconds"):
        return f"{format_significant(value)} s"
    return f"{name.replace('_', ' ')} {_told(value)}"


def _told(value: Any) -> str:
    if isinstance(value, float):
        return format_significant(value)
    return _count(value) or (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _count(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) else None


def _figure(value: Any, number_format: str) -> str | None:
    """A number as told, "nan" as it stands in the log."""
    return f"{value:{number_format}}" if isinstance(value, (int, float)) else value


def _gigabytes(value: Any) -> str | None:
    return None if value is None else format_bytes(value)


def _time(value: float | None) -> str | None:
    return None if value is None else datetime.fromtimestamp(value, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
