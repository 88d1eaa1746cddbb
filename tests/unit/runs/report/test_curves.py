"""What is drawn is what is in metrics.jsonl, however long it is."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretraining.runs.report import curves
from pretraining.runs.report.charts import charts_of
from pretraining.runs.report.curves import DownsampledRecords, Point, read_curves
from pretraining.runs.report.facts import report_tables
from tests.fakes.drawn_run import evaluation_record, write_drawn_run


def thinned(records: Iterator[dict] | list[dict]) -> DownsampledRecords:
    found = DownsampledRecords()
    for record in records:
        found.add(record)
    found.flush()
    return found


def spiky(num_records: int) -> Iterator[dict]:
    for step in range(1, num_records + 1):
        yield {"step": step, "loss": 90.0 if step == 7_777 else -4.0 if step == 8_111 else 2 + step % 7 / 10}


def test_a_short_run_keeps_every_value() -> None:
    records = [{"step": step, "loss": step / 7} for step in range(1, curves.MAX_BINS)]
    assert thinned(records).curve("loss") == [Point(record["step"], record["loss"]) for record in records]


@pytest.mark.parametrize("num_records", [599, 600, 601, 9_999, 20_000])
def test_a_long_run_keeps_what_stands_out_where_it_stands(num_records: int) -> None:
    points = thinned(spiky(num_records)).curve("loss")
    values = [record["loss"] for record in spiky(num_records)]
    assert len(points) <= 4 * curves.MAX_BINS
    assert (min(point.value for point in points), max(point.value for point in points)) == (min(values), max(values))
    assert all(values[point.step - 1] == point.value for point in points)
    steps = [point.step for point in points]
    assert steps == sorted(set(steps))
    assert steps[-1] > num_records * 0.99
    bins = thinned(spiky(num_records)).bins["loss"]
    assert sum(bin_.count for bin_ in bins) == num_records
    assert sum(bin_.total for bin_ in bins) == pytest.approx(sum(values))


def test_the_parts_of_the_time_sum_to_the_whole_in_each_stretch() -> None:
    records = [
        {
            "step": step,
            "data_seconds": 0.25 * (step % 3),
            "other_seconds": 1.0,
            "interval_seconds": 1 + 0.25 * (step % 3),
        }
        for step in range(1, 2_001)
    ]
    bins = thinned(records).bins
    for whole, *parts in zip(bins["interval_seconds"], bins["data_seconds"], bins["other_seconds"], strict=True):
        assert {(part.after_step, part.step) for part in parts} == {(whole.after_step, whole.step)}
        assert sum(part.total for part in parts) == pytest.approx(whole.total)
    assert sum(bin_.total for bin_ in bins["interval_seconds"]) == sum(r["interval_seconds"] for r in records)
    stretches = [(bin_.after_step, bin_.step) for bin_ in bins["interval_seconds"]]
    assert [first for first, _ in stretches] == [0, *(last for _, last in stretches[:-1])]
    assert stretches[-1][1] == 2_000


def test_no_number_is_a_gap_and_a_missing_figure_is_no_curve() -> None:
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": "nan", "grad_norm": "inf"}, {"step": 3, "loss": 1.0}]
    found = thinned([*records, {"step": 4, "loss": 1.5, "note": "a text", "nothing": None}])
    assert found.curve("loss") == [Point(1, 2.0), Point(2, None), Point(3, 1.0), Point(4, 1.5)]
    assert found.curve("grad_norm") == [Point(2, None)]
    assert set(found.bins) == {"step", "loss", "grad_norm"}


def test_memory_does_not_grow_with_the_run() -> None:
    peaks = []
    for num_records in (10_000, 40_000):
        tracemalloc.start()
        thinned(spiky(num_records))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_tokens_lie_between_those_of_the_records_and_go_on_after_them(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 1.0, "tokens": tokens} for step, tokens in ((10, 1000), (20, 3000))]
    write_drawn_run(tmp_path / "run", records)
    record = json.loads((tmp_path / "run/run.json").read_text())
    run = read_curves(tmp_path / "run", {**record, "identity": {"global_batch_tokens": 200}})
    assert [run.tokens_at(step) for step in (0, 5, 10, 15, 20, 23)] == [0, 500, 1000, 2000, 3000, 3600]
    assert read_curves(write_drawn_run(tmp_path / "empty", []), record).tokens_at(5) is None


def test_a_part_of_validation_and_all_of_it_are_two_curves(tmp_path: Path) -> None:
    """Their losses are of other blocks, so a line from one to the other would show a step that no model has made."""
    part = [evaluation_record(step) | {"eval_blocks": 50, "eval_blocks_per_second": 3.0} for step in (100, 200, 300)]
    whole = evaluation_record(300) | {"eval_loss": 2.7}
    records = [{"step": 300, "loss": 2.0}, *part, whole, evaluation_record(300, "test")]
    run = read_curves(write_drawn_run(tmp_path / "run", records), {})
    assert run.curve("part_loss") == [Point(record["step"], record["eval_loss"]) for record in part]
    assert run.curve("eval_loss") == [Point(300, 2.7)]
    names = {line.metric: line.name for chart in charts_of([run]) for line in chart.lines if chart.title == "Loss"}
    assert names["part_loss"] == "validation, part of it"
    assert names["eval_loss"] == "validation"
    by_source = {chart.title: len(chart.lines) for chart in charts_of([run]) if "by source" in chart.title}
    assert by_source == {"Validation loss by source": 2, "Validation loss by source, part of it": 2}
    results = report_tables(run)["Results"]
    assert results["validation loss"] == "2.7000"
    assert results["best loss of a part of validation"] == f"{part[-1]['eval_loss']:.4f} at step 300"
    unfinished = read_curves(write_drawn_run(tmp_path / "unfinished", records[:-2]), {})
    assert report_tables(unfinished)["Results"]["validation, 50 blocks loss"] == f"{part[-1]['eval_loss']:.4f}"


def test_lines_of_evaluations_are_marked(tmp_path: Path) -> None:
    """Up to 60 of their points are dots; those of training are not."""
    training = [{"step": 1, "loss": 2.0, "loss/news": 2.0, "grad_norm": 1.0, "grad_norm/mlp": 0.5}]
    run = read_curves(write_drawn_run(tmp_path / "run", [*training, evaluation_record(1)]), {})
    marked = {line.metric: line.is_evaluation for chart in charts_of([run]) for line in chart.lines}
    assert {name: marked[name] for name in training[0] if name != "step"} == dict.fromkeys(list(training[0])[1:], False)
    assert all(is_marked for name, is_marked in marked.items() if name.startswith("eval_"))


def test_energy_is_that_of_all_starts(tmp_path: Path) -> None:
    """The first record of a start can tell more than the last one of a short start before it."""
    start = {"step": 0, "event": "start", "num_processes": 2}
    records = [{"step": step, "loss": 1.0, "energy_joules": 3.6e6 * step} for step in (1, 2, 3, 4)]
    run = read_curves(write_drawn_run(tmp_path / "run", [start, *records[:2], start, *records[2:]]), {})
    assert run.cost.kilowatt_hours == 2 + 4
    run = read_curves(write_drawn_run(tmp_path / "none", [{"step": 1, "loss": 1.0}]), {})
    assert (run.cost.kilowatt_hours, run.cost.hours, run.cost.process_hours) == (None, None, None)
