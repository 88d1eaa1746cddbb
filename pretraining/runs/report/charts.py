"""The charts of a report and their rows: only what metrics.jsonl contains."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from pretraining.runs.report.curves import PART, Point, RunCurves
from pretraining.runs.tracking.metrics_file import EVALUATIONS, TASK_METRIC, TIME_PARTS, describe_part

# Distinct in both color schemes, light and dark, and for most people with color blindness.
BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, OLIVE, BROWN = PALETTE = (
    *("#3f83c8", "#df7a26", "#2f9e6f", "#a06cc9"),
    *("#d64f6a", "#2aa3b8", "#8f8f2e", "#b07d4b"),
)
GRAY = "#8a8f98"
EVALUATION_NAMES = {PART: "validation, part of it", **EVALUATIONS}
EVALUATION_COLORS = dict(zip(EVALUATION_NAMES, (PURPLE, ORANGE, GREEN), strict=True))
TIME_COLORS = dict(zip(TIME_PARTS.values(), (BLUE, TEAL, RED, ORANGE, PURPLE, GRAY), strict=True))
LIMIT = "known_limit"  # in place of a metric: the line below which no model can get
LIMIT_POINTS = 41  # of that line: a page may show only the last tenth of a run
MAX_DOTS = 60  # of an evaluation; more would hide its line


@dataclass(frozen=True)
class Line:
    """A metric as a line of a chart."""

    metric: str
    name: str
    color: str
    smoothed: str | None = None  # the metric that is this one smoothed; if it exists, this one is drawn faintly
    is_evaluation: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines that share an axis. `factor` converts a metric to the unit of the axis."""

    title: str
    axis: str
    lines: Sequence[Line]
    number_format: str = ",.4~r"
    scale: str = "linear"
    from_zero: bool = False
    factor: float = 1.0
    has_events: bool = False
    limit: float | None = None


@dataclass(frozen=True)
class KnownLimit:
    """The entropy of the validation text, in bits per byte and as loss, and the last evaluation in bits per byte."""

    bits_per_byte: float
    loss: float
    found_bits_per_byte: float

    @property
    def excess(self) -> float:
        """How far the last evaluation is above the limit, as a share of it; negative below it."""
        return self.found_bits_per_byte / self.bits_per_byte - 1


def known_limit(run: RunCurves) -> KnownLimit | None:
    """The limit of a run's data; None where none is known, or the last evaluation was not of all validation text.

    Loss and bits per byte of the same text have the same ratio for every model.
    """
    last = run.evaluations.get("eval", {})
    limit = (run.run_record.get("known_limit") or {}).get("validation")
    loss, found = last.get("eval_loss"), last.get("eval_bits_per_byte")
    if describe_part(last, "eval") or not (_is_positive(limit) and _is_positive(loss) and _is_positive(found)):
        return None
    return KnownLimit(limit, loss * limit / found, found)


def _is_positive(value: Any) -> TypeGuard[float]:
    """Whether a value is a number above 0; "nan" and "inf" are strings."""
    return isinstance(value, (int, float)) and value > 0


def charts_of(runs: Sequence[RunCurves]) -> list[Chart]:
    """The charts for which a run has metrics; with the limit of the data if there is only one run."""
    names = {name for run in runs for name in run.names()}
    limit = known_limit(runs[0]) if len(runs) == 1 else None
    limits = {} if limit is None else {"Loss": limit.loss, "Bits per byte": limit.bits_per_byte}
    charts = []
    for chart in _all_charts(list(dict.fromkeys(name for run in runs for name in run.names()))):
        lines = [line for line in chart.lines if line.metric in names]
        if lines and chart.title in limits:
            lines.append(Line(LIMIT, "limit of the data", GRAY))
        charts += [replace(chart, lines=lines, limit=limits.get(chart.title))] if lines else []
    return charts


def _all_charts(names: Sequence[str]) -> list[Chart]:
    loss = [Line("loss", "train", BLUE, "smoothed_loss"), Line("smoothed_loss", "train, smoothed", BLUE)]
    memory = {
        "peak_memory_bytes": "largest GPU, peak of tensors",
        "gpu_memory_bytes": "largest GPU, in use",
        "host_memory_bytes": "host, all processes",
    }
    per = "/GPU" if "peak_memory_bytes" in names else " per process"
    speed = [
        Line("tokens_per_second_per_gpu", "each interval", BLUE, "overall_tokens_per_second_per_gpu"),
        Line("overall_tokens_per_second_per_gpu", "since the start", BLUE),
    ]
    share: dict[str, Any] = {"number_format": ".3~p", "from_zero": True}  # 0.02 %, not 0 %, of a young run
    amount: dict[str, Any] = {"number_format": ",.4~r", "from_zero": True}
    return [
        Chart("Loss", "loss", [*loss, *_evaluated("loss")], has_events=True),
        Chart("Perplexity", "perplexity", [Line("perplexity", "train", BLUE), *_evaluated("perplexity")], scale="log"),
        Chart("Accuracy", "next token correct", [Line("accuracy", "train", BLUE), *_evaluated("accuracy")], **share),
        Chart("Bits per byte", "bits per byte", _evaluated("bits_per_byte")),
        Chart("Training loss by source", "loss", _by_source("loss/", names)),
        Chart("Validation loss by source", "loss", _by_source("eval_loss/", names)),
        Chart("Validation loss by source, part of it", "loss", _by_source(f"{PART}_loss/", names)),
        Chart("Accuracy on downstream tasks", "accuracy", _of_tasks("acc", names), **share),
        Chart("Learning rate", "learning rate", _lines(learning_rate="learning rate"), ".2~e", from_zero=True),
        Chart("Gradient norm", "norm before clipping", _lines(grad_norm="gradient norm")),
        Chart("Gradient norm by group of parameters", "norm before clipping", _by_source("grad_norm/", names)),
        Chart("Loss scale of fp16", "scale", _lines(loss_scale="loss scale"), scale="log"),
        Chart("Throughput", f"tokens/s{per}", speed, **amount),
        Chart("Model FLOPs utilization", "MFU", _lines(mfu="MFU", mfu_causal="MFU, causal"), **share),
        Chart("FLOPs", f"TFLOP/s{per}", _lines(tflops_per_second_per_gpu="FLOPs"), **amount),
        Chart("Memory", "GB", _lines(**memory), ",.3~r", from_zero=True, factor=1e-9),
        Chart("GPU utilization", "mean of the GPUs", _lines(gpu_utilization="GPU utilization"), **share),
        Chart("Power", "W, all GPUs", _lines(gpu_power_watts="power"), **amount),
    ]


def _evaluated(metric: str) -> list[Line]:
    return [
        Line(f"{prefix}_{metric}", name, EVALUATION_COLORS[prefix], is_evaluation=True)
        for prefix, name in EVALUATION_NAMES.items()
    ]


def _by_source(prefix: str, names: Sequence[str]) -> list[Line]:
    found = [name for name in names if name.startswith(prefix)]
    is_evaluation = prefix.endswith("_loss/")  # neither loss/ nor grad_norm/
    return [
        Line(name, name.removeprefix(prefix), PALETTE[place % len(PALETTE)], is_evaluation=is_evaluation)
        for place, name in enumerate(found)
    ]


def _of_tasks(metric: str, names: Sequence[str]) -> list[Line]:
    found = [match for name in names if (match := TASK_METRIC.fullmatch(name)) is not None and match[2] == metric]
    return [
        Line(match[0], match[1], PALETTE[place % len(PALETTE)], is_evaluation=True) for place, match in enumerate(found)
    ]


def _lines(**names: str) -> list[Line]:
    return [Line(metric, name, color) for (metric, name), color in zip(names.items(), PALETTE, strict=False)]


def rows_of(chart: Chart, run: RunCurves, *, run_name: str | None = None) -> list[dict[str, Any]]:
    """The points of a chart's lines as rows of Vega-Lite.

    Of a long run the lowest and highest values are drawn faintly behind the means, as are metrics behind their smoothed
    ones. With a `run_name`, for a comparison of runs, faint points are omitted.
    """
    named = {} if run_name is None else {"run": run_name}
    rows = []
    for line in chart.lines:
        for points, marks in _curves_of(chart, line, run):
            if run_name is None or "faint" not in marks:
                rows += [_row(chart, line, run, point) | marks | named for point in points]
    return rows


def _curves_of(chart: Chart, line: Line, run: RunCurves) -> list[tuple[list[Point], dict[str, int]]]:
    """The points of a line, each with what marks them: `faint`, `dot` or `dashed`."""
    if line.metric == LIMIT:
        last = max(record.get("step", 0) for record in (run.last, run.evaluations["eval"]))
        steps = (round(last * number / (LIMIT_POINTS - 1)) for number in range(LIMIT_POINTS))
        return [([Point(step, chart.limit) for step in steps], {"dashed": 1})]
    records, points = run.records_of(line.metric), run.curve(line.metric)
    if line.smoothed is not None and run.curve(line.smoothed):
        return [(points, {"faint": 1})]
    if records.records_per_bin > 1:
        return [(points, {"faint": 1}), (records.means(line.metric), {})]
    max_dots = MAX_DOTS if line.is_evaluation else 1  # a line of one point is invisible
    return [(points, {"dot": 1} if len(points) <= max_dots else {})]


def _row(chart: Chart, line: Line, run: RunCurves, point: Point) -> dict[str, Any]:
    value = None if point.value is None else _rounded(point.value * chart.factor)
    return {"step": point.step, "tokens": run.tokens_at(point.step), "value": value, "line": line.name}


def time_rows(run: RunCurves) -> list[dict[str, Any]]:
    """Seconds of each time part in each bin of the run, and as stacked shares of the bin from 0 to 1."""
    parts = {
        name: {bin_.step: bin_.total for bin_ in run.training.bins.get(f"{part}_seconds", [])}
        for part, name in TIME_PARTS.items()
    }
    rows = []
    for bin_ in run.training.bins.get("interval_seconds", []):
        below = 0.0
        for name, totals in parts.items():
            seconds = totals.get(bin_.step)
            if seconds and bin_.total:
                share = seconds / bin_.total
                rows.append(
                    {"step": bin_.after_step, "step_to": bin_.step}
                    | {"tokens": run.tokens_at(bin_.after_step), "tokens_to": run.tokens_at(bin_.step)}
                    | {"line": name, "seconds": _rounded(seconds), "share": _rounded(share)}
                    | {"from": _rounded(below), "to": _rounded(below + share)}
                )
                below += share
    return rows


def _rounded(value: float) -> float:
    """Six digits: more are not visible, and a report of a long run has 100,000 numbers."""
    return float(f"{value:.6g}")
