"""The tables of a report: what a run was, in words and numbers. What its folder does not record is omitted."""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pretraining.runs.claim import is_being_written
from pretraining.runs.history import SECONDS_PER_HOUR, format_significant
from pretraining.runs.report.charts import known_limit
from pretraining.runs.report.curves import PART, RunCurves
from pretraining.runs.report.phases import data_sets, phase_table
from pretraining.runs.tracking.console import describe_block, per_process, summary_lines
from pretraining.runs.tracking.metrics_file import (
    EVALUATIONS,
    METRIC_FORMATS,
    TIME_PARTS,
    Record,
    describe_part,
    describe_task,
    task_metrics,
)
from pretraining.system.formatting import format_bytes
from pretraining.system.privacy import hide_path, hide_paths_of_command, mask

Table = dict[str, str | None]
SHOWN_ELSEWHERE = ("step", "event", "logged_at", "samples")
COMMAND = "command"
SETTINGS = ("document_masking", "ignore_first_token", "seed", "order_seed")  # of the identity of a run
COUNT = ","
MAX_SECONDS = 8e13  # about the most that a timedelta holds; damaged records can add up to more


def run_state(run: RunCurves) -> str:
    """One of finished, stopped with its reason, running, or interrupted."""
    step, num_steps = _last_step(run), run.run_record.get("arguments", {}).get("max_steps", 0)
    if step >= num_steps > 0 or run.has_reached_target(step):
        return "finished"
    turns = [event for event in run.events if event["event"] in ("start", "restart", "stop")]
    if turns and turns[-1]["event"] == "stop" and turns[-1]["step"] >= step:
        return f"stopped ({turns[-1].get('reason', 'on request')})"
    return "running" if is_being_written(run.run_dir) else "interrupted"


def _last_step(run: RunCurves) -> int:
    """The last step with a record, or that at which the newest start ended: not every step is logged."""
    turns = [event for event in run.events if event["event"] in ("start", "summary")]
    ended_at = turns[-1]["step"] if turns and turns[-1]["event"] == "summary" else 0
    return max(ended_at, run.last.get("step", 0))


def report_tables(run: RunCurves) -> dict[str, dict[str, str]]:
    """Facts by the heading of their table."""
    command, tasks = run.run_record.get("command"), task_metrics(run.evaluations.get("eval", {}))
    tables: dict[str, Table] = {
        "Command": {COMMAND: hide_paths_of_command(mask(command)) if isinstance(command, str) else None},
        "Run": _run_table(run),
        "Results": _results_table(run),
        "Downstream tasks, last evaluation": {name: describe_task(metrics) for name, metrics in tasks.items()},
        "Model and data": _model_table(run.run_record),
        "Phases": phase_table(run.run_record),
        "Training": _training_table(run.run_record),
        "Speed": _speed_table(run),
        "Machine": _machine_table(run.run_record),
        "Software": _software_table(run.run_record),
    }
    known = {heading: {name: fact for name, fact in table.items() if fact} for heading, table in tables.items()}
    return {heading: table for heading, table in known.items() if table}


def _run_table(run: RunCurves) -> Table:
    step, num_steps = _last_step(run), run.run_record.get("arguments", {}).get("max_steps", 0)
    times = [datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%d %H:%M UTC") for at in run.logged_at]
    return {
        "state": run_state(run),
        "step": f"{step:,} of {num_steps:,}",
        "tokens": _format(run.tokens_at(step), COUNT),
        "first record": times[0] if times else None,
        "last record": times[-1] if times else None,
        "starts": str(len(run.run_record.get("earlier_starts", [])) + 1),
        "run folder": hide_path(run.run_dir),
    }


def _results_table(run: RunCurves) -> Table:
    table = {
        "training loss, last record": _format(run.last.get("loss"), ".4f"),
        "training loss, smoothed": _format(run.last.get("smoothed_loss"), ".4f"),
    }
    for prefix, name in EVALUATIONS.items():
        found = run.evaluations.get(prefix, {})
        name += describe_part(found, prefix)
        for metric, number_format in METRIC_FORMATS.items():
            table[f"{name} {metric.replace('_', ' ')}"] = _format(found.get(f"{prefix}_{metric}"), number_format)
    limit = known_limit(run)
    if limit is not None:
        table["limit of bits per byte"] = f"{limit.bits_per_byte:.4f}"
        table["validation above the limit"] = f"{limit.excess:.1%}"
    for metric, name in (("eval_loss", "best validation loss"), (f"{PART}_loss", "best loss of a part of validation")):
        losses = [(point.value, point.step) for point in run.curve(metric) if point.value is not None]
        table[name] = "{:.4f} at step {:,}".format(*min(losses)) if losses else None
    table["spikes"] = _format(run.last.get("spikes"), COUNT)
    table["steps with NaN or Inf"] = _format(run.last.get("non_finite_steps"), COUNT)
    return table


def _model_table(record: Record) -> Table:
    arguments, identity = record.get("arguments", {}), record.get("identity", {})
    config = identity.get("model_config", {})
    return {
        "model": hide_path(str(arguments["model"])) if arguments.get("model") else None,
        "parameters": _format(record.get("num_parameters"), COUNT),
        "layers": _format(config.get("num_hidden_layers"), COUNT),
        "hidden size": _format(config.get("hidden_size"), COUNT),
        "MLP size": _format(config.get("intermediate_size"), COUNT),
        "attention heads": _format(config.get("num_attention_heads"), COUNT),
        "key and value heads": _format(config.get("num_key_value_heads"), COUNT),
        "vocabulary": _format(config.get("vocab_size"), COUNT),
        "data": None if arguments.get("phases") else data_sets(arguments),
        "manifest": ", ".join(store.get("manifest_sha256", "")[:12] for store in identity.get("data", [])),
        "block length": _format(record.get("block_length"), COUNT),
    }


def _training_table(record: Record) -> Table:
    arguments, identity, schedule = (record.get(name, {}) for name in ("arguments", "identity", "schedule"))
    settings = {**identity.get("optimizer_settings", {}), **{name: identity.get(name) for name in SETTINGS}}
    return {
        "tokens per step": _format(identity.get("global_batch_tokens"), COUNT),
        "precision": identity.get("precision"),
        "precision of matrix multiplications": identity.get("product_precision"),
        "optimizer": identity.get("optimizer"),
        **{name.replace("_", " "): _format_field(value) for name, value in settings.items() if value is not None},
        **({} if arguments.get("phases") else _schedule_table(arguments, schedule)),
    }


def _schedule_table(arguments: Record, schedule: Record) -> Table:
    minimum = schedule.get("peak") if schedule.get("shape") == "constant" else schedule.get("minimum")
    return {
        "learning rate": _format(arguments.get("learning_rate"), ".2e"),
        "schedule": schedule.get("shape"),
        "warmup steps": _format(schedule.get("warmup_steps"), COUNT),
        "lowest learning rate": _format(minimum, ".2e"),
    }


def _speed_table(run: RunCurves) -> Table:
    last, cost = run.last, run.cost
    table: Table = {}
    if cost.hours is not None:
        table["time, all starts"] = str(timedelta(seconds=round(min(cost.hours * SECONDS_PER_HOUR, MAX_SECONDS))))
    table |= {f"share of {TIME_PARTS[part]}": f"{share:.1%}" for part, share in cost.shares.items()}
    if cost.process_hours is not None and run.run_record.get("hardware", {}).get("gpu"):
        table["GPU hours"] = format_significant(cost.process_hours)
    unit, speed = f"tokens/s{per_process(last)}", last.get("overall_tokens_per_second_per_gpu")
    if speed is not None:
        table[f"{unit}, this start"] = _format(speed, ",.0f")
    else:
        table[f"{unit}, last interval"] = _format(last.get("tokens_per_second_per_gpu"), ",.0f")
    table["MFU, last interval"] = _format(last.get("mfu"), ".1%")
    table["memory of tensors, largest GPU"] = _format_size(last.get("peak_memory_bytes"))
    energy = cost.kilowatt_hours
    table["energy of the GPUs"] = None if energy is None else f"{format_significant(energy)} kWh"
    return table


def _machine_table(record: Record) -> Table:
    hardware = record.get("hardware", {})
    used = hardware.get("gpu")
    sizes = [gpu.get("memory_bytes") for gpu in hardware.get("gpus", []) if gpu.get("name") == used]
    return {
        "GPUs": None if used is None else f"{hardware.get('num_processes')} x {used}",
        "memory per GPU": _format_size(min((size for size in sizes if size is not None), default=None)),
        "driver": hardware.get("driver"),
        "processes": _format(hardware.get("num_processes"), COUNT),
        "CPU": hardware.get("cpu"),
        "cores": _format(hardware.get("num_cpu_cores"), COUNT),
        "host memory": _format_size(hardware.get("memory_bytes")),
    }


def _software_table(record: Record) -> Table:
    git = record.get("git") or {}
    commit = git["commit"][:12] + " (with changes)" * bool(git.get("is_dirty")) if "commit" in git else None
    return {"commit": commit, "Python": record.get("python"), **record.get("packages", {})}


def describe_limit(run: RunCurves) -> str | None:
    """How far a run is from the limit of its data, in a sentence; None where no limit is known."""
    limit = known_limit(run)
    if limit is None:
        return None
    below = f"{-limit.excess:.1%} below it: it has seen the answers"
    place = f"{limit.excess:.1%} above it" if limit.excess >= 0 else below
    return (
        f"No model gets below the dashed line, the entropy of the validation text: {limit.bits_per_byte:.4f} bits per "
        f"byte. The last evaluation, {limit.found_bits_per_byte:.4f}, is {place}."
    )


def describe_event(event: Mapping[str, Any]) -> str:
    """What an event records in addition to its name and step; JSON where fields or types are unknown."""
    fields = {name: value for name, value in event.items() if name not in SHOWN_ELSEWHERE and value is not None}
    try:
        return "; ".join(summary_lines(event) if event["event"] == "summary" else _format_fields(fields))
    except (KeyError, TypeError, ValueError, OverflowError):
        return json.dumps(fields, ensure_ascii=False)


def _format_fields(fields: Mapping[str, Any]) -> Iterator[str]:
    """Fields with their units, where their names end in one; blocks with their documents."""
    for name, value in fields.items():
        if name == "blocks":
            yield from map(describe_block, value)
        elif name.endswith("bytes"):
            yield format_bytes(value)
        elif name.endswith("seconds"):
            yield f"{format_significant(value)} s"
        else:
            yield f"{name.replace('_', ' ')} {_format_field(value)}"


def _format_field(value: Any) -> str:
    if isinstance(value, (bool, float)):
        return str(value) if isinstance(value, bool) else format_significant(value)
    return _format(value, COUNT) if isinstance(value, (int, str)) else json.dumps(value, ensure_ascii=False)


def _format(value: Any, number_format: str) -> Any:
    """A number as text; a string, e.g. "nan", and None unchanged."""
    return f"{value:{number_format}}" if isinstance(value, (int, float)) else value


def _format_size(num_bytes: float | None) -> str | None:
    return None if num_bytes is None else format_bytes(num_bytes)
