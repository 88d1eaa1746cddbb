"""report.html and curves.png of a run folder, or one page of several runs: they open anywhere, without a network."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from pretraining.errors import UserError
from pretraining.runs.record_file import read_run_record
from pretraining.runs.report.charts import charts_of, rows_of, time_rows
from pretraining.runs.report.curves import RunCurves, read_curves
from pretraining.runs.report.facts import describe_event, describe_limit, report_tables, run_state
from pretraining.runs.report.vega_lite import chart_spec, event_marker, legend_of, static_spec, time_legend, time_spec
from pretraining.runs.run_folder import CURVES_NAME, REPORT_NAME
from pretraining.system.files import check_new_file, write_atomically
from pretraining.system.privacy import hide_paths, mask

TEMPLATE = Path(__file__).with_name("report_page.html")
MAX_EVENTS, MAX_SAMPLES = 1000, 60  # that are listed
MAX_MARKED = 100  # events of a kind in the loss chart
PICTURED = ("Loss", "Learning rate", "Gradient norm", "Throughput")
PICTURE_SCALE = 1.5
GENERATOR = b'<meta name="generator" content="pretraining report">'  # near the beginning of report_page.html
HEAD_BYTES = 1000
PAGE_CODE = "window.vegaEmbed = vegaEmbed"  # of the libraries, what the page calls
Rows = list[dict[str, Any]]


def write_report(run_dir: Path) -> None:
    """Write both files of a run into its folder.

    Raises:
        UserError: when it holds no run.
    """
    run = read_curves(run_dir, read_run_record(run_dir))
    write_atomically(run_dir / REPORT_NAME, _page({run_dir.resolve().name: run}).encode())
    pictured = [(chart, rows_of(chart, run)) for chart in charts_of([run]) if chart.title in PICTURED]
    if pictured:
        write_atomically(run_dir / CURVES_NAME, vl_convert.vegalite_to_png(static_spec(pictured), scale=PICTURE_SCALE))


def write_comparison(run_dirs: Sequence[Path], path: Path) -> None:
    """Write one page of several runs, each in a separate color.

    Raises:
        UserError: when one of them is not a run, or the page cannot be written.
    """
    short = [run_dir.resolve().name for run_dir in run_dirs]
    names = [name if short.count(name) == 1 else str(run_dir) for name, run_dir in zip(short, run_dirs, strict=True)]
    runs = [read_curves(run_dir, read_run_record(run_dir)) for run_dir in run_dirs]
    try:
        if not (path.is_file() and _is_page(path)):  # only a page of this kind is replaced
            check_new_file(path, flag="--output")
        write_atomically(path, _page(dict(zip(names, runs, strict=True))).encode())
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror}); choose another file") from None


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return GENERATOR in file.read(HEAD_BYTES)


def _page(runs: dict[str, RunCurves]) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    only = next(iter(runs.values())) if len(runs) == 1 else None
    events = [] if only is None else _event_rows(only)
    tables = [report_tables(run) for run in runs.values()]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        runs=list(runs),
        state=None if only is None else run_state(only),
        tables=tables[0] if only is not None else {},
        compared=[] if only is not None else _compared(tables),
        charts=_charts(runs, events) + _time_charts(runs),
        events=events[-MAX_EVENTS:],
        records_per_bin=max(run.training.records_per_bin for run in runs.values()),
        samples=[] if only is None else _samples(only),
        code=vl_convert.javascript_bundle(PAGE_CODE),
    )


def _charts(runs: dict[str, RunCurves], events: Rows) -> Rows:
    """Title, legend, specification, width, events and note of each chart."""
    is_single = len(runs) == 1
    found: Rows = []
    for chart in charts_of(list(runs.values())):
        rows = [row for name, run in runs.items() for row in rows_of(chart, run, run_name=None if is_single else name)]
        marked = _thinned(events) if chart.has_events else []
        note = describe_limit(next(iter(runs.values()))) if chart.has_events and is_single else None
        entry = {"title": chart.title, "legend": legend_of(chart, rows), "spec": chart_spec(chart, rows, marked)}
        found.append({**entry, "is_wide": chart.has_events, "events": marked, "note": note})
    return found


def _time_charts(runs: dict[str, RunCurves]) -> Rows:
    return [
        {"title": "Time" if len(runs) == 1 else f"Time of {name}", "legend": time_legend(), "spec": time_spec(rows)}
        | {"is_wide": True, "events": [], "note": None}
        for name, run in runs.items()
        if (rows := time_rows(run))
    ]


def _compared(tables: Sequence[dict[str, dict[str, str]]]) -> list[tuple[str, list[str]]]:
    """Each fact with its value in every run, empty where a run does not have it."""
    headings = dict.fromkeys(heading for table in tables for heading in table)
    names = dict.fromkeys(
        (heading, name) for heading in headings for table in tables for name in table.get(heading, {})
    )
    return [(name, [table.get(heading, {}).get(name, "") for table in tables]) for heading, name in names]


def _event_rows(run: RunCurves) -> Rows:
    """The events of a run as the loss chart marks them and the page lists them."""
    return [
        {"step": event["step"], "tokens": run.tokens_at(event["step"]), "event": event["event"]}
        | {"what": hide_paths(mask(describe_event(event))), **event_marker(event["event"])}
        for event in run.events
        if event["event"] != "samples"
    ]


def _thinned(events: Rows) -> Rows:
    """Of each kind of event at most MAX_MARKED, evenly spaced: more, e.g. of saves, would overlap."""
    by_kind: dict[str, Rows] = defaultdict(list)
    for event in events:
        by_kind[event["event"]].append(event)
    kept = [event for kind in by_kind.values() for event in kind[:: -(-len(kind) // MAX_MARKED)]]
    return sorted(kept, key=lambda event: event["step"])


def _samples(run: RunCurves) -> list[tuple[str, list[tuple[int, str]]]]:
    """By prompt, the step and the completion, newest first; of many, some from the entire run."""
    events = [event for event in run.events if event["event"] == "samples"]
    every = -(-len(events) // MAX_SAMPLES) or 1
    by_prompt: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for event in events[::-every]:
        for sample in event.get("samples", []):
            if isinstance(sample, dict):
                by_prompt[str(sample.get("prompt"))].append((event["step"], str(sample.get("continuation")).rstrip()))
    return list(by_prompt.items())
