"""report.html and curves.png of a run folder, or of several runs in one page: they open anywhere, without a network."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import vl_convert

from pretraining.errors import UserError
from pretraining.runs.history import Record
from pretraining.runs.record_file import read_run_record
from pretraining.runs.report.charts import charts_of, rows_of, time_rows
from pretraining.runs.report.curves import RunCurves, read_curves
from pretraining.runs.report.facts import describe_event, described_limit, report_tables, run_state
from pretraining.runs.report.vega_lite import chart_spec, event_sign, legend_of, static_spec, time_legend, time_spec
from pretraining.runs.run_folder import CURVES_NAME, REPORT_NAME
from pretraining.system.files import write_atomically
from pretraining.system.privacy import hide_paths, mask

TEMPLATE = Path(__file__).with_name("report_page.html")
MOST_EVENTS, MOST_SAMPLES = 1000, 60  # that are listed
MOST_MARKED = 100  # events of a kind in the loss chart
PICTURED = ("Loss", "Learning rate", "Gradient norm", "Throughput")
PICTURE_SCALE = 1.5
GENERATOR = b'<meta name="generator" content="pretraining report">'  # what report_page.html has at its beginning
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
    """Write one page of several runs, each in a colour of its own.

    Raises:
        UserError: when one of them is not a run, or the page has no place there.
    """
    _check_output(path)
    short = [run_dir.resolve().name for run_dir in run_dirs]
    names = [name if short.count(name) == 1 else str(run_dir) for name, run_dir in zip(short, run_dirs, strict=True)]
    runs = [read_curves(run_dir, read_run_record(run_dir)) for run_dir in run_dirs]
    write_atomically(path, _page(dict(zip(names, runs, strict=True))).encode())


def _check_output(path: Path) -> None:
    """Refuse a place where no file can be, or where a file is that is not a report."""
    try:
        problem = _output_problem(path)
    except OSError as error:
        problem = f"cannot be written ({error.strerror}); pass another file"
    if problem is not None:
        raise UserError(f"--output {path}: {problem}")


def _output_problem(path: Path) -> str | None:
    if path.is_dir():
        return "is a folder; pass a file, e.g. comparison.html"
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist; create it, or pass a file in another one"
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return f"the folder {path.parent} is not writable; pass a file in another one"
    if not path.exists():
        return None
    is_report = path.is_file() and GENERATOR in _head(path)
    return None if is_report else "exists and is not a report; remove it, or pass another file"


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _page(runs: dict[str, RunCurves]) -> str:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    only = next(iter(runs.values())) if len(runs) == 1 else None
    events = [] if only is None else _event_rows(only)
    facts = {name: report_tables(run) for name, run in runs.items()}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        runs=runs,
        states={name: run_state(run) for name, run in runs.items()},
        facts=facts,
        names_of_facts=_names_of_facts(list(facts.values())),
        charts=_charts(runs, events),
        events=events[-MOST_EVENTS:],
        records_per_bin=max(run.training.records_per_bin for run in runs.values()),
        samples=[] if only is None else _samples(only),
        code=vl_convert.javascript_bundle(PAGE_CODE),
    )


def _charts(runs: dict[str, RunCurves], events: Rows) -> list[dict[str, Any]]:
    """Title, legend, specification and width of each chart."""
    is_single = len(runs) == 1
    found: list[dict[str, Any]] = []
    for chart in charts_of(list(runs.values())):
        rows = [row for name, run in runs.items() for row in rows_of(chart, run, run_name=None if is_single else name)]
        marked = _some_of_each_kind(events) if chart.has_events else []
        entry = {"title": chart.title, "legend": legend_of(chart, rows), "spec": chart_spec(chart, rows, marked)}
        note = described_limit(next(iter(runs.values()))) if chart.has_events and is_single else None
        found.append({**entry, "is_wide": chart.has_events, "events": marked, "note": note})
    for name, run in runs.items():
        title, rows = "Time" if is_single else f"Time of {name}", time_rows(run)
        if rows:
            entry = {"title": title, "legend": time_legend(), "spec": time_spec(rows)}
            found.append({**entry, "is_wide": True, "events": [], "note": None})
    return found


def _names_of_facts(facts: Sequence[dict[str, dict[str, str]]]) -> dict[str, list[str]]:
    """The facts of all runs by heading, in the order in which they are told."""
    headings = dict.fromkeys(heading for sections in facts for heading in sections)
    return {
        heading: list(dict.fromkeys(name for sections in facts for name in sections.get(heading, ())))
        for heading in headings
    }


def _event_rows(run: RunCurves) -> Rows:
    """The events of a run as the loss chart marks them and the page lists them."""
    rows = []
    for event in run.events:
        if event["event"] != "samples":
            place = {"step": event["step"], "tokens": run.tokens_at(event["step"])}
            told = {"event": event["event"], "told": hide_paths(mask(describe_event(event)))}
            rows.append({**place, **told, **event_sign(event["event"])})
    return rows


def _some_of_each_kind(events: Rows) -> Rows:
    """Of kinds that there are very many of, such as saves, as many as can be told apart."""
    counts = Counter(event["event"] for event in events)
    seen: Counter[str] = Counter()
    kept = []
    for event in events:
        every = -(-counts[event["event"]] // MOST_MARKED)
        if seen[event["event"]] % every == 0:
            kept.append(event)
        seen[event["event"]] += 1
    return kept


def _samples(run: RunCurves) -> list[tuple[str, list[tuple[int, str]]]]:
    """By prompt, step and continuation, newest first; of many, some from the whole run."""
    events = [event for event in run.events if event["event"] == "samples"]
    every = -(-len(events) // MOST_SAMPLES) or 1
    by_prompt: dict[str, list[tuple[int, str]]] = {}
    for event in events[::-every]:
        for sample in _list_of_samples(event):
            by_prompt.setdefault(str(sample.get("prompt")), []).append(
                (event["step"], str(sample.get("continuation")).rstrip())
            )
    return list(by_prompt.items())


def _list_of_samples(event: Record) -> list[Record]:
    return [sample for sample in event.get("samples", []) if isinstance(sample, dict)]
