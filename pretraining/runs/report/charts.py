"""Which charts the report of a run has, and what stands in them: only what is in metrics.jsonl."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from pretraining.runs.report.curves import Point, RunCurves

# Told apart in both schemes of colours, light and dark, and by most people who do not see all colours alike.
BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, OLIVE, BROWN = PALETTE = (
    *("#3f83c8", "#df7a26", "#2f9e6f", "#a06cc9"),
    *("#d64f6a", "#2aa3b8", "#8f8f2e", "#b07d4b"),
)
GRAY = "#8a8f98"
LIMIT = "known_limit"  # in place of a figure: the line below which no model gets
LIMIT_POINTS = 41  # of that line, for which a page may show the last tenth of a run
MOST_DOTS = 60  # of an evaluation; more would hide its line
EVALUATIONS = {"eval_": ("validation", ORANGE), "test_": ("test", GREEN)}
# The parts of an interval, from below: what the GPUs do for the loss, and what keeps them from it.
TIME_PARTS = {
    "forward_backward_seconds": ("forward and backward", BLUE),
    "optimizer_seconds": ("optimizer", TEAL),
    "data_seconds": ("waiting for data", RED),
    "evaluation_seconds": ("evaluation", ORANGE),
    "save_seconds": ("saving", PURPLE),
    "other_seconds": ("other", GRAY),
}


@dataclass(frozen=True)
class Line:
    """One figure of the log, as a line of a chart."""

    figure: str
    name: str
    color: str
    smoothed: str | None = None  # the figure that is this one smoothed; where there is one, this is drawn faintly
    is_evaluation: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines that have one axis. `factor` takes a figure of the log to the unit of the axis."""

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
    """What no model gets below on the validation text, and by which share of it the last evaluation is above."""

    bits_per_byte: float
    loss: float
    found_bits_per_byte: float

    @property
    def above(self) -> float:
        """As a share of the limit; negative below it."""
        return self.found_bits_per_byte / self.bits_per_byte - 1


def known_limit(run: RunCurves) -> KnownLimit | None:
    """The limit of a run's data; None where none is known, or nothing was evaluated.

    Loss and bits per byte of the same text have the same ratio for every model.
    """
    last = run.evaluations["eval"].last
    limit = (run.run_record.get("known_limit") or {}).get("validation")
    loss, found = last.get("eval_loss"), last.get("eval_bits_per_byte")
    if not (_is_positive(limit) and _is_positive(loss) and _is_positive(found)):
        return None
    return KnownLimit(limit, loss * limit / found, found)


def _is_positive(figure: Any) -> TypeGuard[float]:
    """Whether a figure of a file is a number above 0; "nan" and "inf" are words there."""
    return isinstance(figure, (int, float)) and figure > 0


def charts_of(runs: Sequence[RunCurves]) -> list[Chart]:
    """The charts for which a run has figures; with the limit of the data for a run alone."""
    names = list(dict.fromkeys(name for run in runs for name in run.names()))
    limit = known_limit(runs[0]) if len(runs) == 1 else None
    charts = (_with_limit(_with_what_there_is(chart, names), limit) for chart in _all_charts(names))
    return [chart for chart in charts if chart.lines]


def _with_limit(chart: Chart, limit: KnownLimit | None) -> Chart:
    values = {} if limit is None else {"Loss": limit.loss, "Bits per byte": limit.bits_per_byte}
    if chart.title not in values or not chart.lines:
        return chart
    line = Line(LIMIT, "limit of the data", GRAY)
    return replace(chart, limit=values[chart.title], lines=[*chart.lines, line])


def _all_charts(names: Sequence[str]) -> list[Chart]:
    loss = [Line("loss", "train", BLUE, "smoothed_loss"), Line("smoothed_loss", "train, smoothed", BLUE)]
    bytes_on_gpu = [("peak_memory_bytes", "largest GPU, tensors at most"), ("gpu_memory_bytes", "largest GPU, in use")]
    memory = [*bytes_on_gpu, ("host_memory_bytes", "host, all processes")]
    per = "/GPU" if "peak_memory_bytes" in names else " per process"
    speed = [
        Line("tokens_per_second_per_gpu", "each interval", BLUE, "overall_tokens_per_second_per_gpu"),
        Line("overall_tokens_per_second_per_gpu", "since the start", BLUE),
    ]
    share: dict[str, Any] = {"number_format": ".1~%", "from_zero": True}
    return [
        Chart("Loss", "loss", [*loss, *_evaluated("loss")], has_events=True),
        Chart("Perplexity", "perplexity", [Line("perplexity", "train", BLUE), *_evaluated("perplexity")], scale="log"),
        Chart("Accuracy", "next token right", [Line("accuracy", "train", BLUE), *_evaluated("accuracy")], **share),
        Chart("Bits per byte", "bits per byte", _evaluated("bits_per_byte")),
        Chart("Training loss by source", "loss", _by_source("loss/", names)),
        Chart("Validation loss by source", "loss", _by_source("eval_loss/", names)),
        Chart("Learning rate", "learning rate", [Line("learning_rate", "learning rate", BLUE)], ".2~e", from_zero=True),
        Chart("Gradient norm", "norm before clipping", [Line("grad_norm", "gradient norm", BLUE)]),
        Chart("Loss scale of fp16", "scale", [Line("loss_scale", "loss scale", BLUE)], scale="log"),
        Chart("Throughput", f"tokens/s{per}", speed, ",.4~r", from_zero=True),
        Chart("Model FLOPs utilization", "MFU", _lines(("mfu", "MFU"), ("mfu_causal", "MFU, causal")), **share),
        Chart("FLOPs", f"TFLOP/s{per}", _lines(("tflops_per_second_per_gpu", "FLOPs")), ",.4~r", from_zero=True),
        Chart("Memory", "GB", _lines(*memory), ",.3~r", from_zero=True, factor=1e-9),
        Chart("GPU utilization", "mean of the GPUs", _lines(("gpu_utilization", "GPU utilization")), **share),
        Chart("Power", "W, all GPUs", _lines(("gpu_power_watts", "power")), ",.4~r", from_zero=True),
    ]


def _with_what_there_is(chart: Chart, names: Sequence[str]) -> Chart:
    lines = [line for line in chart.lines if line.figure in names]
    return replace(chart, lines=lines)


def _evaluated(figure: str) -> list[Line]:
    return [Line(f"{prefix}{figure}", name, color, is_evaluation=True) for prefix, (name, color) in EVALUATIONS.items()]


def _by_source(prefix: str, names: Sequence[str]) -> list[Line]:
    found = [name for name in names if name.startswith(prefix)]
    return [
        Line(name, name.removeprefix(prefix), PALETTE[place % len(PALETTE)], is_evaluation=prefix.startswith("eval_"))
        for place, name in enumerate(found)
    ]


def _lines(*figures: tuple[str, str]) -> list[Line]:
    return [Line(figure, name, color) for (figure, name), color in zip(figures, PALETTE, strict=False)]


def rows_of(chart: Chart, run: RunCurves, *, run_name: str | None = None) -> list[dict[str, Any]]:
    """The points of a chart's lines, as Vega-Lite takes them.

    Of a long run the lowest and highest values are drawn faintly behind the means, as are figures behind their smoothed
    ones. With the run's name where several are compared, and without what is faint.
    """
    rows = []
    for line in chart.lines:
        if line.figure == LIMIT:
            rows += _limit_rows(chart, line, run)
            continue
        part, points = run.part_with(line.figure), run.curve(line.figure)
        has_smoothed = line.smoothed is not None and bool(run.curve(line.smoothed))
        has_means = part.records_per_bin > 1 and not has_smoothed
        most_dots = MOST_DOTS if line.is_evaluation else 1  # a line of one point is none
        marks = {"dot": 1} if len(points) <= most_dots else {}
        drawn = [(points, {"faint": 1} if has_smoothed or has_means else marks)]
        if has_means:
            drawn.append((part.means(line.figure), {}))
        for some, marks in drawn:
            if run_name is None or "faint" not in marks:
                named = marks if run_name is None else {**marks, "run": run_name}
                rows += [_row(chart, line, run, point) | named for point in some]
    return rows


def _limit_rows(chart: Chart, line: Line, run: RunCurves) -> list[dict[str, Any]]:
    last = max(run.training.last.get("step", 0), run.evaluations["eval"].last["step"])
    steps = (last * number / (LIMIT_POINTS - 1) for number in range(LIMIT_POINTS))
    return [_row(chart, line, run, Point(round(step), chart.limit)) | {"dashed": 1} for step in steps]


def _row(chart: Chart, line: Line, run: RunCurves, point: Point) -> dict[str, Any]:
    value = None if point.value is None else _rounded(point.value * chart.factor)
    return {"step": point.step, "tokens": run.tokens_at(point.step), "value": value, "line": line.name}


def time_rows(run: RunCurves) -> list[dict[str, Any]]:
    """Seconds of each part in each stretch of the run, and as shares of it that lie on one another from 0 to 1."""
    parts = {name: {total.step: total.seconds for total in run.training.totals.get(name, [])} for name in TIME_PARTS}
    rows = []
    for stretch in run.training.totals.get("interval_seconds", []):
        below = 0.0
        for name, (part, _) in TIME_PARTS.items():
            seconds = parts[name].get(stretch.step)
            if not seconds or not stretch.seconds:
                continue
            share = seconds / stretch.seconds
            row = {
                "step": stretch.after_step,
                "step_to": stretch.step,
                "tokens": run.tokens_at(stretch.after_step),
                "tokens_to": run.tokens_at(stretch.step),
                "line": part,
                "seconds": _rounded(seconds),
                "share": _rounded(share),
                "from": _rounded(below),
                "to": _rounded(below + share),
            }
            rows.append(row)
            below += share
    return rows


def _rounded(value: float) -> float:
    """Six digits: more cannot be seen, and a report of a long run has 100,000 numbers."""
    return float(f"{value:.6g}")
