"""The report of a run, seen by a real browser: every chart drawn, no complaint, no network, at any width."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import vl_convert

from pretraining.errors import UserError
from pretraining.runs.claim import lock_run_folder
from pretraining.runs.report.charts import charts_of, rows_of
from pretraining.runs.report.curves import read_curves
from pretraining.runs.report.facts import describe_event, report_tables, run_state
from pretraining.runs.report.report import PICTURED, write_comparison, write_report
from pretraining.runs.report.vega_lite import static_spec
from tests.fakes.browser import DARK, Seen, look_at, look_at_all
from tests.fakes.drawn_run import PARTS, SCRIPT, evaluation_record, event, run_records, training_record, write_drawn_run

CHARTS = ["Loss", "Perplexity", "Accuracy", "Bits per byte", "Training loss by source", "Validation loss by source"]
CHARTS += ["Accuracy on downstream tasks", "Learning rate", "Gradient norm", "Throughput", "Model FLOPs utilization"]
CHARTS += ["FLOPs", "Memory"]
CHARTS += ["GPU utilization", "Power", "Time"]


PAGE_LIMIT = 0.8  # of the page with a limit
LIMITS = {0.5: "40.6% above it.", PAGE_LIMIT: "12.1% below it: it has seen the answers."}
WIDTHS = {"run": (1400, 400, 320), "both": (400,), "bare": (700,), "empty": (700,), "limited": (600,)}


@pytest.fixture(scope="module", autouse=True)
def one_bundle() -> Iterator[None]:
    """The libraries of a page are the same in each, and putting them together takes half of its time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vl_convert, "javascript_bundle", cache(vl_convert.javascript_bundle))
        yield


@contextmanager
def without_pictures() -> Iterator[None]:
    """A picture takes as long as all else of a page."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vl_convert, "vegalite_to_png", lambda *_, **__: b"")
        yield


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = write_drawn_run(tmp_path_factory.mktemp("drawn") / "run")
    write_report(run_dir)
    return run_dir


def limit_data(run_dir: Path, limit: float) -> dict[str, Any]:
    """Put the limit of the validation text into run.json."""
    record = json.loads((run_dir / "run.json").read_text())
    record["known_limit"] = {"validation": limit, "test": 9.0}
    (run_dir / "run.json").write_text(json.dumps(record))
    return record


@pytest.fixture(scope="module")
def pages(run_dir: Path) -> dict[str, Path]:
    """Reports of a run with everything, of two runs, of a log with two steps, without steps, and of limited data.

    The last one shows the last half of its run.
    """
    folder = run_dir.parent
    records = [record for record in run_records(100) if "event" not in record]
    other = write_drawn_run(folder / "other", [{**record, "smoothed_loss": None} for record in records])
    write_comparison([run_dir, other], folder / "both.html")
    bare = [{"step": 1, "loss": "nan"}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.1}]
    # Of one chart: a browser takes a second for sixteen.
    losses = [
        {name: record[name] for name in ("step", "tokens", "loss")} for record in run_records() if "loss" in record
    ]
    last = evaluation_record(400)
    losses.append({name: last[name] for name in ("step", "eval_loss", "eval_bits_per_byte")})
    for name, records_of_run in {"bare": bare, "empty": [], "limited": losses}.items():
        write_drawn_run(folder / name, records_of_run)
        if name == "limited":
            limit_data(folder / name, PAGE_LIMIT)
        with without_pictures():
            write_report(folder / name)
    limited = folder / "limited/report.html"
    limited.write_text(limited.read_text().replace('value="0.5"', 'value="0.5" selected'))
    return {name: folder / ("both.html" if name == "both" else f"{name}/report.html") for name in WIDTHS}


@pytest.fixture(scope="module")
def seen(pages: dict[str, Path]) -> dict[str, Seen]:
    """What one browser saw of all pages, since a start of it takes as long as drawing them."""
    found = look_at_all({pages[name]: widths for name, widths in WIDTHS.items()})
    frames = iter(found.frames)
    return {name: Seen([next(frames) for _ in widths], found.console) for name, widths in WIDTHS.items()}


def assert_fine(seen: Seen, charts: list[str]) -> None:
    assert seen.console == []
    for frame in seen.frames:
        assert [request for request in frame["requests"] if not request.startswith("data:")] == []
        assert list(frame["charts"]) == charts
        assert {title: marks for title, marks in frame["charts"].items() if marks < 1} == {}
        assert (frame["scroll_width"], frame["cut_off"]) == (frame["width"], 0)


@pytest.mark.guarantee("The report opens offline in a real browser, every chart drawn, at 1400, 400 and 320 pixels.")
def test_a_browser_draws_every_chart_at_any_width(seen: dict[str, Seen]) -> None:
    frames = seen["run"].frames
    assert_fine(seen["run"], CHARTS)
    assert [frame["width"] for frame in frames] == [1400, 400, 320]
    assert {frame["title"] for frame in frames} == {"run"}, "a script of a sample or a flag has run"
    assert SCRIPT in frames[0]["text"]
    assert "best validation loss\n2.10" in frames[0]["text"]
    assert f"score 11.5; block 1,234 of blocks, loss 9.5000: {SCRIPT}:3 (a)" in frames[0]["text"]
    assert "checkpoint checkpoint-400; 94.3 GB; 61.5 s" in frames[0]["text"]


def test_all_charts_have_the_same_steps(seen: dict[str, Seen]) -> None:
    """Also those of evaluations, which begin later, and the lines of the longer of two runs."""
    for name, num_charts in {"run": len(CHARTS), "both": len(CHARTS) + 1}.items():
        (axis,) = set(seen[name].frames[0]["steps"])
        assert axis.startswith("X-axis titled 'step' for a linear scale with values from 0 to 400"), axis
        assert len(seen[name].frames[0]["steps"]) == num_charts


def test_the_last_half_fills_the_charts(seen: dict[str, Seen]) -> None:
    (axis,) = set(seen["limited"].frames[0]["steps"])
    assert "with values from 200 to 400" in axis


def test_it_is_dark_where_its_reader_wants_that(seen: dict[str, Seen], pages: dict[str, Path]) -> None:
    dark = look_at(pages["empty"], widths=(600,), scheme=DARK)
    sums = [sum(map(int, re.findall(r"\d+", found.frames[0]["color"]))) for found in (seen["run"], dark)]
    assert sums[0] < 200 < 600 < sums[1]


def test_several_runs_are_in_one_page(seen: dict[str, Seen]) -> None:
    assert_fine(seen["both"], [*CHARTS[:-1], "Time of run", "Time of other"])
    assert "100 of 400" in seen["both"].frames[0]["text"]


def test_what_is_not_in_the_log_is_not_drawn(seen: dict[str, Seen], pages: dict[str, Path]) -> None:
    assert_fine(seen["bare"], ["Loss"])
    assert {"Speed", "Events", "Samples"} & set(seen["bare"].frames[0]["text"].splitlines()) == set()
    assert_fine(seen["empty"], [])
    assert "metrics.jsonl has no steps yet." in seen["empty"].frames[0]["text"]
    assert not (pages["empty"].parent / "curves.png").exists()


def test_the_picture_names_no_two_lines_of_one_colour(run_dir: Path) -> None:
    run = read_curves(run_dir, json.loads((run_dir / "run.json").read_text()))
    charts = [(chart, rows_of(chart, run)) for chart in charts_of([run]) if chart.title in PICTURED]
    layers = static_spec(charts)["vconcat"][0]["layer"]
    for color in (layer["encoding"]["color"] for layer in layers):
        of_line = dict(zip(color["scale"]["domain"], color["scale"]["range"], strict=True))
        named = [of_line[name] for name in color["legend"]["values"]]
        assert len(named) == len(set(named)) == 3


@pytest.mark.parametrize("highest", [0.0008, 0.003, 0.2, 1.0])
def test_the_shares_on_an_axis_differ(highest: float, tmp_path: Path) -> None:
    """Those of a young run, too, whose accuracy is far below 1 %."""
    records = [{"step": step, "loss": 9.0, "accuracy": highest * step / 2} for step in (1, 2)]
    run = read_curves(write_drawn_run(tmp_path / "run", records), {})
    (chart,) = [chart for chart in charts_of([run]) if chart.title == "Accuracy"]
    labels = re.findall(r">([\d.]+%)<", vl_convert.vegalite_to_svg(static_spec([(chart, rows_of(chart, run))])))
    assert len(labels) == len(set(labels)) >= 3


def test_a_summary_among_the_events_is_told_as_at_the_end_of_the_run() -> None:
    parts = {f"{part}_seconds": 1.0 for part in PARTS}
    summary = event(4, "summary", num_steps=4, total_seconds=6.0, peak_host_memory_bytes=2_301_546_496, **parts)
    assert describe_event(summary).startswith("time: 4 steps in 6 s: forward+backward 17 %, optimizer 17 %, ")
    assert describe_event(summary).endswith("; memory: 2.3 GB of host memory at most")


def test_a_long_run_is_a_page_of_a_few_megabytes(tmp_path: Path) -> None:
    run_dir = write_drawn_run(tmp_path / "run", [training_record(step) for step in range(1, 5001)], max_steps=5000)
    write_report(run_dir)
    assert (run_dir / "report.html").stat().st_size < 5_000_000
    assert (run_dir / "curves.png").stat().st_size < 500_000


def test_the_state_of_a_run(tmp_path: Path) -> None:
    def state(name: str, records: list[dict], *, max_steps: int = 400) -> str:
        run_dir = write_drawn_run(tmp_path / name, records, max_steps=max_steps)
        if name == "running":
            lock_run_folder(run_dir)
        return run_state(read_curves(run_dir, json.loads((run_dir / "run.json").read_text())))

    half = [training_record(step) for step in range(1, 201)]
    assert state("finished", half, max_steps=200) == "finished"
    assert state("stopped", [*half, event(200, "stop", reason="SIGTERM")]) == "stopped (SIGTERM)"
    assert state("and more", [*half, event(200, "stop", reason="x"), event(200, "warning")]) == "stopped (x)"
    assert state("again", [*half, event(200, "stop", reason="x"), event(200, "start")]) == "interrupted"
    assert state("gone on", [*half[:100], event(100, "stop", reason="SIGTERM"), *half[100:]]) == "interrupted"
    reached = [*half, event(200, "target reached")]
    assert state("target", reached) == "finished"
    assert state("beyond the target", [*reached, event(200, "start"), training_record(201)]) == "interrupted"
    assert state("running", half) == "running"
    assert state("begun", []) == "interrupted"
    ended = event(400, "summary", total_seconds=7200.0)
    seldom = [event(0, "start", num_processes=8), *half[:50], ended]
    assert state("last steps not logged", seldom) == "finished"
    assert state("longer than it was", [*seldom, event(400, "start", num_processes=8)]) == "interrupted"


def test_facts_are_told_as_the_run_tells_them(run_dir: Path) -> None:
    run = read_curves(run_dir, json.loads((run_dir / "run.json").read_text()))
    facts = report_tables(run)
    assert facts["Speed"]["share of evaluation"] == f"{8 / (400 * 0.95 + 4 * 2 + 8):.1%}"
    shares = [value for name, value in facts["Speed"].items() if name.startswith("share of ")]
    assert sum(float(share.rstrip("%")) for share in shares) == pytest.approx(100, abs=0.3)
    assert facts["Machine"] == {"GPUs": "8 x NVIDIA H200", "memory per GPU": "150.8 GB", "processes": "8"}
    assert facts["Speed"]["energy of the GPUs"] == f"{5200 * 400 / 3.6e6:,.3g} kWh"
    assert facts["Software"]["commit"] == "0123456789ab (with changes)"
    assert facts["Run"]["tokens"] == f"{400 * 4096:,}"
    assert facts["Downstream tasks, last evaluation"] == {
        "arc": "acc 69.5% ± 1.3%, chance 25.0%, 1,172 examples",
        "lambada": "acc 49.4%, perplexity 12.00, 5,153 examples",
    }


def test_every_setting_that_changes_the_loss_is_a_fact(run_dir: Path) -> None:
    """Two runs that differ in one of them are told apart in their comparison."""
    run = read_curves(run_dir, json.loads((run_dir / "run.json").read_text()))
    settings = {"adam_beta2": 0.95, "adam_epsilon": 1e-8, "weight_decay": 0.0, "weight_decay_on_norms": False}
    run.run_record["identity"] |= {"optimizer_settings": settings, "seed": 0, "document_masking": True}
    run.run_record["schedule"] = {"shape": "cosine", "warmup_steps": 2000, "minimum": 3e-5}
    found = report_tables(run)["Training"]
    expected = {"adam beta2": "0.95", "adam epsilon": "1e-08", "weight decay": "0", "seed": "0"}
    expected |= {"weight decay on norms": "False", "document masking": "True"}
    expected |= {"schedule": "cosine", "warmup steps": "2,000", "lowest learning rate": "3.00e-05"}
    assert {name: found[name] for name in expected} == expected


def test_the_limit_of_the_data_is_a_line_and_a_sentence(
    tmp_path: Path, seen: dict[str, Seen], pages: dict[str, Path]
) -> None:
    """Bits per byte are a third of the loss in these records, so a limit of 0.5 is a loss of 1.5."""
    run_dir = write_drawn_run(tmp_path / "run")
    unlimited = read_curves(run_dir, json.loads((run_dir / "run.json").read_text()))
    assert not [chart.title for chart in charts_of([unlimited]) if chart.limit is not None]
    for limit, words in LIMITS.items():
        run = read_curves(run_dir, limit_data(run_dir, limit))
        charts = {chart.title: chart for chart in charts_of([run])}
        for title, value in {"Loss": 3 * limit, "Bits per byte": limit}.items():
            rows = [row for row in rows_of(charts[title], run) if row["line"] == "limit of the data"]
            assert (rows[0]["step"], rows[-1]["step"], rows[-1]["tokens"]) == (0, 400, 400 * 4096)
            assert [row["value"] for row in rows] == pytest.approx([value] * len(rows))
        if limit != PAGE_LIMIT:
            with without_pictures():
                write_report(run_dir)
        page = (pages["limited"] if limit == PAGE_LIMIT else run_dir / "report.html").read_text()
        assert f"the entropy of the validation text: {limit:.4f} bits per byte. The last evaluation, 0.7" in page
        assert words in page
    assert_fine(seen["limited"], ["Loss", "Bits per byte"])
    assert "limit of the data" in seen["limited"].frames[0]["text"]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json: cannot be read"):
        write_report(tmp_path)
