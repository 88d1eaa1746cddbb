"""Charts as Vega-Lite specifications: for a page with the colors and width of its reader, and for a picture.

Vega-Lite through vl-convert: a page with all its code is 0.9 MB, and a picture needs no browser. Plotly's page is
4.8 MB, and its pictures need Chrome. Altair would take 2.5 s to check ten charts, while a training runs.
"""

from collections.abc import Sequence
from typing import Any

from pretraining.runs.report.charts import (
    BLUE,
    GRAY,
    GREEN,
    LIMIT,
    ORANGE,
    PALETTE,
    PURPLE,
    RED,
    TEAL,
    TIME_COLORS,
    Chart,
)

Spec = dict[str, Any]
Rows = list[dict[str, Any]]

HEIGHT, WIDE_HEIGHT = 240, 340
PICTURE_WIDTH, PICTURE_HEIGHT, PICTURE_GAP = 1100, 420, 90
PICTURE_CONFIG: Spec = {
    "background": "white",
    "font": "sans-serif",
    "view": {"stroke": None},
    "axis": {"gridOpacity": 0.5, "titleFontWeight": "normal", "labelFontSize": 12, "titleFontSize": 12},
    "legend": {"labelFontSize": 13, "symbolStrokeWidth": 3, "symbolType": "stroke"},
}
FAINT = 0.6
SOLID, LIMIT_DASH = [1, 0], [6, 4]
DASHES = (SOLID, [5, 3], [2, 2], [8, 3, 2, 3])
# Color and shape of events in the loss chart; others are gray.
EVENT_MARKERS = {
    "start": (GREEN, "triangle-right"),
    "restart": (GREEN, "triangle-right"),
    "spike": (RED, "triangle-up"),
    "non-finite": (RED, "cross"),
    "rollback": (PURPLE, "triangle-left"),
    "save": (BLUE, "circle"),
    "save failed": (RED, "square"),
    "push": (TEAL, "circle"),
    "stop": (ORANGE, "square"),
    "warning": (ORANGE, "diamond"),
}
OTHER_MARKER = (GRAY, "circle")
# The shapes as characters, of which no font makes a picture.
SIGNS = {"circle": "●", "cross": "✚", "diamond": "◆", "square": "■"}
SIGNS |= {"triangle-left": "◄", "triangle-right": "►", "triangle-up": "▲"}
EXPECTED_EVENTS = ("save", "push", "summary")  # they are drawn on the axis of steps, others at the top
# The page can replace the steps by tokens, and gives all charts the same range.
X_AXIS = {"format": "~s", "grid": False, "tickCount": 6}
X: Spec = {"field": "step", "type": "quantitative", "title": "step", "axis": X_AXIS}
X |= {"scale": {"nice": False, "zero": True}}


def chart_spec(chart: Chart, rows: Rows, events: Rows) -> Spec:
    """A chart as wide as its container, with a tooltip for the point nearest to the pointer."""
    layers = [*_line_layers(chart, rows), _pointer_layer(chart, rows), *([_event_layer(events)] if events else [])]
    height = WIDE_HEIGHT if chart.has_events else HEIGHT
    return {"width": "container", "height": height, "data": {"values": rows}, "encoding": {"x": X}, "layer": layers}


def static_spec(charts: Sequence[tuple[Chart, Rows]]) -> Spec:
    """The first chart wide, the others below it side by side: for a model card, on white."""
    small_width = (PICTURE_WIDTH - PICTURE_GAP * (len(charts) - 2)) // max(1, len(charts) - 1)
    parts = [
        {
            "title": {"text": chart.title, "anchor": "start"},
            "width": small_width if number else PICTURE_WIDTH,
            "height": PICTURE_HEIGHT // 2 if number else PICTURE_HEIGHT,
            "data": {"values": rows},
            "encoding": {"x": X},
            "layer": _line_layers(chart, rows, legend=None if number else _picture_legend(rows)),
        }
        for number, (chart, rows) in enumerate(charts)
    ]
    # Flush bounds align the frames, however wide the numbers at their axes are.
    placed: Spec = {"bounds": "flush", "spacing": PICTURE_GAP}
    below = [{"hconcat": parts[1:], **placed}] if len(parts) > 1 else []
    picture = {"vconcat": [parts[0], *below], **placed, "resolve": {"scale": {"color": "independent"}}}
    return {"padding": 16, **picture, "config": PICTURE_CONFIG}


def _picture_legend(rows: Rows) -> Spec:
    """The names of the lines without the faint ones, which have the colors of their smoothed ones."""
    names = list(dict.fromkeys(row["line"] for row in rows if "faint" not in row))
    return {"title": None, "orient": "top-right", "symbolOpacity": 1, "values": names}


def time_legend() -> Rows:
    """The parts of the time."""
    return [_legend_entry(name, color) for name, color in TIME_COLORS.items()]


def time_spec(rows: Rows) -> Spec:
    """The parts of the time, stacked."""
    return {
        "width": "container",
        "height": HEIGHT,
        "data": {"values": rows},
        "mark": {"type": "rect", "strokeWidth": 0},
        "encoding": {
            "x": X,
            "x2": {"field": "step_to"},
            "y": {"field": "from", "type": "quantitative", "title": "share of the time", "axis": {"format": "%"}},
            "y2": {"field": "to"},
            "color": _color("line", TIME_COLORS),
            "tooltip": [
                {"field": "line", "title": "part"},
                {"field": "step_to", "title": "until step", "format": ","},
                {"field": "share", "format": ".1%"},
                {"field": "seconds", "format": ",.4~r"},
            ],
        },
    }


def _color(field: str, colors: dict[str, str], *, legend: Spec | None = None) -> Spec:
    scale = {"domain": list(colors), "range": list(colors.values())}
    return {"field": field, "scale": scale, "legend": legend}


def _run_colors(rows: Rows) -> dict[str, str]:
    """Colors of the runs that are compared in a chart; empty for a single run."""
    runs = dict.fromkeys(row["run"] for row in rows if "run" in row)
    return {run: PALETTE[place % len(PALETTE)] for place, run in enumerate(runs)}


def _value(chart: Chart, rows: Rows, *, legend: Spec | None = None) -> Spec:
    """Value and color of the points; the color is that of the line, or of the run where several are compared."""
    scale = {"type": chart.scale, "nice": False} if chart.scale == "log" else {"zero": chart.from_zero}
    axis: Spec = {"format": chart.number_format, "tickCount": 6, "labelExpr": "datum.value == 0 ? '0' : datum.label"}
    if chart.scale == "log":
        axis["gridOpacity"] = 0.06  # it has lines between the powers of ten too
    runs = _run_colors(rows)
    colors = runs or {line.name: line.color for line in chart.lines}
    return {
        "y": {"field": "value", "type": "quantitative", "title": chart.axis, "scale": scale, "axis": axis},
        "color": _color("run" if runs else "line", colors, legend=legend),
    }


def _line_layers(chart: Chart, rows: Rows, *, legend: Spec | None = None) -> list[Spec]:
    """The faint lines, the others over them, and dots where there are few points."""
    value = _value(chart, rows, legend=legend)
    line = {"type": "line", "strokeWidth": 1.6, "strokeJoin": "round"}
    layers = [
        ("datum.faint", {**line, "opacity": FAINT}, value | _strokes(chart, rows)),
        ("!datum.faint", {**line, "opacity": 1.0}, value | _strokes(chart, rows)),
        ("datum.dot", {"type": "point", "filled": True, "size": 34, "opacity": 1}, value),
    ]
    is_used = {
        "datum.faint": any("faint" in row for row in rows),
        "!datum.faint": any("faint" not in row for row in rows),
        "datum.dot": any("dot" in row for row in rows),
    }
    return [
        {"transform": [{"filter": test}], "mark": mark, "encoding": encoding}
        for test, mark, encoding in layers
        if is_used[test]
    ]


def _strokes(chart: Chart, rows: Rows) -> Spec:
    """What separates the lines of a chart: their dashes where the colors are those of runs."""
    if not _run_colors(rows):
        dashes = {"condition": {"test": "datum.dashed", "value": LIMIT_DASH}, "value": SOLID}
        return {"detail": {"field": "line"}, **({} if chart.limit is None else {"strokeDash": dashes})}
    scale = {"domain": [line.name for line in chart.lines], "range": _dashes(chart)}
    return {"strokeDash": {"field": "line", "scale": scale, "legend": None}}


def _dashes(chart: Chart) -> list[list[int]]:
    """A dash for each line; one for training and one for evaluation where a chart has both."""
    kinds = [line.is_evaluation for line in chart.lines]
    by_kind = len(set(kinds)) == 2 or chart.lines[0].smoothed
    return [DASHES[number % len(DASHES)] for number in (kinds if by_kind else range(len(kinds)))]


def _pointer_layer(chart: Chart, rows: Rows) -> Spec:
    """Dots that appear, with a tooltip, when they are the nearest to the pointer.

    The tooltip is an expression, since Vega-Lite 6.4 loses the names in the tooltips of nearest points.
    """
    row = "(datum.datum || datum)"
    fields = {"run": f"{row}.run"} if _run_colors(rows) else {}
    fields |= {"curve": f"{row}.line", "step": f"format({row}.step, ',')", "tokens": f"format({row}.tokens, ',')"}
    fields[chart.axis] = f"format({row}.value, '{chart.number_format}')"
    tooltip = "{" + ", ".join(f"'{name}': {expression}" for name, expression in fields.items()) + "}"
    hover = {"type": "point", "on": "pointerover", "clear": "pointerout", "nearest": True}
    shown = {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0}
    return {
        "params": [{"name": "hover", "select": hover}],
        "mark": {"type": "point", "filled": True, "size": 60, "tooltip": {"expr": tooltip}},
        "encoding": {**_value(chart, rows), "opacity": shown},
    }


def legend_of(chart: Chart, rows: Rows) -> Rows:
    """Each line as it looks; each run, and each kind of line, where several runs are compared."""
    opacities = {row["line"]: FAINT if "faint" in row else 1.0 for row in rows}  # means come after what is faint
    runs = _run_colors(rows)
    entries = []
    for line, dash in zip(chart.lines, _dashes(chart), strict=True):
        if line.name in opacities and runs:
            entries.append(_legend_entry(line.name, "currentColor", dash=dash))
        elif line.name in opacities:
            dash = LIMIT_DASH if line.metric == LIMIT else []
            entries.append(_legend_entry(line.name, line.color, opacity=opacities[line.name], dash=dash))
    if not runs:
        return entries
    return [_legend_entry(run, color) for run, color in runs.items()] + (entries if len(entries) > 1 else [])


def _legend_entry(name: str, color: str, *, opacity: float = 1.0, dash: Sequence[int] = ()) -> dict[str, Any]:
    return {"name": name, "color": color, "opacity": opacity, "dash": " ".join(map(str, dash))}


def event_marker(event: str) -> Spec:
    """Color, shape and height in the loss chart, and the shape as a character."""
    color, shape = EVENT_MARKERS.get(event, OTHER_MARKER)
    height = WIDE_HEIGHT if event in EXPECTED_EVENTS else 12  # below the label of the uppermost value
    return {"color": color, "shape": shape, "sign": SIGNS[shape], "y": height}


def _event_layer(events: Rows) -> Spec:
    encoding: Spec = {name: {"field": name, "scale": None} for name in ("color", "shape")}
    encoding["y"] = {"field": "y", "type": "quantitative", "scale": None}
    encoding["tooltip"] = [{"field": "event"}, {"field": "step", "format": ","}, {"field": "what"}]
    mark = {"type": "point", "filled": True, "size": 60, "opacity": 0.9}
    return {"data": {"values": events}, "mark": mark, "encoding": encoding}
