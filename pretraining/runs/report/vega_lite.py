"""Charts as Vega-Lite: for a page that takes the colours and the width of its reader, and for a picture.

Vega-Lite, by vl-convert: a page with all its code is 0.9 MB and a picture needs no browser. Plotly's page is 4.8 MB,
and its pictures need Chrome. The specifications are written here and not by Altair, which would take 2.5 s to check
ten charts, beside a training.
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
    TIME_PARTS,
    Chart,
)

Spec = dict[str, Any]
Rows = list[dict[str, Any]]

HEIGHT, WIDE_HEIGHT = 240, 340
PICTURE_WIDTH, PICTURE_HEIGHT, PICTURE_GAP = 1100, 420, 90
PICTURE_CONFIG: Spec = {"background": "white", "font": "sans-serif", "view": {"stroke": None}}
PICTURE_CONFIG["axis"] = {"gridOpacity": 0.5, "titleFontWeight": "normal", "labelFontSize": 12, "titleFontSize": 12}
PICTURE_CONFIG["legend"] = {"labelFontSize": 13, "symbolStrokeWidth": 3, "symbolType": "stroke"}
INDEPENDENT = {"scale": {"color": "independent"}}
FAINT = 0.6
LIMIT_DASH = [6, 4]
DASHES = ([1, 0], [5, 3], [2, 2], [8, 3, 2, 3])
# Colour and sign of what happens to a run; what is not here is gray.
EVENT_SIGNS = {
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
OTHER_SIGN = (GRAY, "circle")
EXPECTED_EVENTS = ("save", "push", "summary")  # they stand at the bottom, and what nobody planned at the top
STEP_AXIS = {"format": "~s", "grid": False, "tickCount": 6}


def chart_spec(chart: Chart, rows: Rows, events: Rows) -> Spec:
    """A chart as wide as its place, with a pointer that tells the nearest point."""
    layers = [*_drawn_layers(chart, rows), _pointer_layer(chart, rows), *([_event_layer(events)] if events else [])]
    height = WIDE_HEIGHT if chart.has_events else HEIGHT
    return {"width": "container", "height": height, "data": {"values": rows}, "encoding": _x(), "layer": layers}


def static_spec(charts: Sequence[tuple[Chart, Rows]]) -> Spec:
    """The first chart wide, the others under it side by side: for a model card, on white."""
    small_width = (PICTURE_WIDTH - PICTURE_GAP * (len(charts) - 2)) // max(1, len(charts) - 1)
    parts = [
        {
            "title": {"text": chart.title, "anchor": "start"},
            "width": small_width if number else PICTURE_WIDTH,
            "height": PICTURE_HEIGHT // 2 if number else PICTURE_HEIGHT,
            "data": {"values": rows},
            "encoding": _x(),
            "layer": _with_legend(chart, rows) if number == 0 else _drawn_layers(chart, rows),
        }
        for number, (chart, rows) in enumerate(charts)
    ]
    # Flush: frames stand in line, however wide the numbers beside them are.
    placed: Spec = {"bounds": "flush", "spacing": PICTURE_GAP}
    below = [{"hconcat": parts[1:], **placed}] if len(parts) > 1 else []
    whole = {"vconcat": [parts[0], *below], **placed}
    return {"padding": 16, **whole, "resolve": INDEPENDENT, "config": PICTURE_CONFIG}


def _with_legend(chart: Chart, rows: Rows) -> list[Spec]:
    """Lines with their names, but not those that are faint: they have the colour of the smoothed ones.

    A page has its legends beside the charts, where they can wrap.
    """
    layers, names = _drawn_layers(chart, rows), [row["line"] for row in rows if "faint" not in row]
    named: Spec = {"title": None, "orient": "top-right", "symbolOpacity": 1, "values": list(dict.fromkeys(names))}
    for layer in layers:
        layer["encoding"]["color"]["legend"] = named
    return layers


def time_legend() -> Rows:
    """The parts of the time."""
    return [_sign_of_line(part, color) for part, color in TIME_PARTS.values()]


def time_spec(rows: Rows) -> Spec:
    """The parts of the time on one another."""
    names = [name for name, _ in TIME_PARTS.values()]
    color = {"domain": names, "range": [color for _, color in TIME_PARTS.values()]}
    return {
        "width": "container",
        "height": HEIGHT,
        "data": {"values": rows},
        "mark": {"type": "rect", "strokeWidth": 0},
        "encoding": {
            **_x(),
            "x2": {"field": "step_to"},
            "y": {"field": "from", "type": "quantitative", "title": "share of the time", "axis": {"format": "%"}},
            "y2": {"field": "to"},
            "color": {"field": "line", "scale": color, "legend": None},
            "tooltip": [
                {"field": "line", "title": "part"},
                {"field": "step_to", "title": "until step", "format": ","},
                {"field": "share", "format": ".1%"},
                {"field": "seconds", "format": ",.4~r"},
            ],
        },
    }


def _x() -> Spec:
    """The step; the page can put the tokens in its place."""
    return {
        "x": {"field": "step", "type": "quantitative", "title": "step", "axis": STEP_AXIS, "scale": {"nice": False}}
    }


def _y(chart: Chart) -> Spec:
    scale = {"type": chart.scale, "nice": False} if chart.scale == "log" else {"zero": chart.from_zero}
    axis: Spec = {"format": chart.number_format, "tickCount": 6, "labelExpr": "datum.value == 0 ? '0' : datum.label"}
    if chart.scale == "log":
        axis["gridOpacity"] = 0.06  # it has lines between the tens too
    return {"field": "value", "type": "quantitative", "title": chart.axis, "scale": scale, "axis": axis}


def runs_of(rows: Rows) -> list[str]:
    """The runs that are compared in a chart; none where there is one."""
    return list(dict.fromkeys(row["run"] for row in rows if "run" in row))


def _color(chart: Chart, rows: Rows) -> Spec:
    """Colours of the lines; of the runs where several are compared."""
    runs = runs_of(rows)
    if runs:
        return {"field": "run", "scale": {"domain": runs, "range": list(PALETTE)}, "legend": None}
    scale = {"domain": [line.name for line in chart.lines], "range": [line.color for line in chart.lines]}
    return {"field": "line", "scale": scale, "legend": None}


def _drawn_layers(chart: Chart, rows: Rows) -> list[Spec]:
    """The lines, those behind a smoothed one fainter, and dots where there are few points."""
    layers: list[Spec] = []
    for is_faint, opacity in ((True, FAINT), (False, 1.0)):
        if any(("faint" in row) is is_faint for row in rows):
            mark = {"type": "line", "strokeWidth": 1.6, "strokeJoin": "round", "opacity": opacity}
            encoding: Spec = {"y": _y(chart), "color": _color(chart, rows), **_dashes(chart, rows)}
            layers.append(
                {
                    "transform": [{"filter": "datum.faint" if is_faint else "!datum.faint"}],
                    "mark": mark,
                    "encoding": encoding,
                }
            )
    if any("dot" in row for row in rows):
        mark = {"type": "point", "filled": True, "size": 34, "opacity": 1}
        encoding = {"y": _y(chart), "color": _color(chart, rows)}
        layers.append({"transform": [{"filter": "datum.dot"}], "mark": mark, "encoding": encoding})
    return layers


def _dashes(chart: Chart, rows: Rows) -> Spec:
    """What keeps the lines of a chart apart; their dashes where colours tell the runs."""
    names = [line.name for line in chart.lines]
    if not runs_of(rows):
        dashes = {"condition": {"test": "datum.dashed", "value": LIMIT_DASH}, "value": DASHES[0]}
        return {"detail": {"field": "line"}, **({} if chart.limit is None else {"strokeDash": dashes})}
    scale = {"domain": names, "range": [_dash(chart, place) for place in range(len(names))]}
    return {"strokeDash": {"field": "line", "scale": scale, "legend": None}}


def _dash(chart: Chart, place: int) -> list[int]:
    kinds = [line.is_evaluation for line in chart.lines]
    number = kinds[place] if len(set(kinds)) == 2 or chart.lines[0].smoothed else place
    return DASHES[number % len(DASHES)]


def _pointer_layer(chart: Chart, rows: Rows) -> Spec:
    """Dots that are seen and told when they are the nearest to the pointer.

    What they tell is an expression, since Vega-Lite 6.4 loses names in the tooltips of what is nearest.
    """
    row = "(datum.datum || datum)"
    told = {"run": f"{row}.run"} if runs_of(rows) else {}
    told |= {"curve": f"{row}.line", "step": f"format({row}.step, ',')", "tokens": f"format({row}.tokens, ',')"}
    told[chart.axis] = f"format({row}.value, '{chart.number_format}')"
    tooltip = "{" + ", ".join(f"'{name}': {expression}" for name, expression in told.items()) + "}"
    hover = {"type": "point", "on": "pointerover", "clear": "pointerout", "nearest": True}
    shown = {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0}
    return {
        "params": [{"name": "hover", "select": hover}],
        "mark": {"type": "point", "filled": True, "size": 60, "tooltip": {"expr": tooltip}},
        "encoding": {"y": _y(chart), "color": _color(chart, rows), "opacity": shown},
    }


def legend_of(chart: Chart, rows: Rows) -> Rows:
    """Each line as it looks; each run and each kind of line where several are compared."""
    drawn = {row["line"]: FAINT if "faint" in row else 1.0 for row in rows}  # its means come after what is faint
    lines = [(place, line) for place, line in enumerate(chart.lines) if line.name in drawn]
    runs = runs_of(rows)
    if not runs:
        return [
            _sign_of_line(
                line.name, line.color, opacity=drawn[line.name], dash=LIMIT_DASH if line.figure == LIMIT else ()
            )
            for _, line in lines
        ]
    signs = [_sign_of_line(run, PALETTE[place % len(PALETTE)]) for place, run in enumerate(runs)]
    kinds = [_sign_of_line(line.name, "currentColor", dash=_dash(chart, place)) for place, line in lines]
    return signs + (kinds if len(kinds) > 1 else [])


def _sign_of_line(name: str, color: str, *, opacity: float = 1.0, dash: Sequence[int] = ()) -> dict[str, Any]:
    return {"name": name, "color": color, "opacity": opacity, "dash": " ".join(map(str, dash))}


def event_sign(event: str) -> Spec:
    """Colour, shape and height in the loss chart."""
    color, shape = EVENT_SIGNS.get(event, OTHER_SIGN)
    return {"color": color, "shape": shape, "y": WIDE_HEIGHT - 8 if event in EXPECTED_EVENTS else 8}


def _event_layer(events: Rows) -> Spec:
    return {
        "data": {"values": events},
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.9},
        "encoding": {
            "y": {"field": "y", "type": "quantitative", "scale": None},
            "color": {"field": "color", "scale": None},
            "shape": {"field": "shape", "scale": None},
            "tooltip": [{"field": "event"}, {"field": "step", "format": ","}, {"field": "told", "title": "what"}],
        },
    }
