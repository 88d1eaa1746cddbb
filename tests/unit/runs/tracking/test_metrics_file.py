"""metrics.jsonl with any line damaged: all other records are read, one warning names the line, nothing is lost."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pretraining.runs.history import read_history, read_records
from pretraining.runs.tracking.metrics_file import describe_damage, describe_task, task_metrics
from pretraining.runs.tracking.metrics_log import MetricsLog
from pretraining.runs.tracking.reporters import last_reported_step

RECORDS = [{"step": step, "loss": 2.0, "logged_at": 1.8e9} for step in (1, 2, 3)]
RECORDS.insert(2, {"step": 2, "event": "samples", "samples": [{"prompt": "去", "continuation": "家"}]})
LINES = [json.dumps(record, ensure_ascii=False).encode() for record in RECORDS]
DAMAGED = {
    "inside a character": LINES[2][: LINES[2].index("家".encode()) + 1],
    "half a line": LINES[0][:20],
    "zeros": b"\x00" * 5000,
    "zeros in a text": LINES[0].replace(b"loss", b"lo\x00s"),
    "garbage": bytes(range(128, 256)),
    "no object": b"[1, 2]",
    "no step": b'{"loss": 2.0}',
    "step as text": b'{"step": "7", "loss": 2.0}',
    "step of no sense": b'{"step": -1, "loss": 2.0}',
    "deep": b'{"step": 1, "loss": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not so deep": b'{"step": 1, "loss": ' + b"[" * 200 + b"]" * 200 + b"}",
    "huge step": b'{"step": ' + b"9" * 400 + b', "loss": 2.0}',
    "huge figure": b'{"step": 1, "loss": ' + b"9" * 5000 + b"}",
    "half a surrogate pair": rb'{"step": 1, "loss": 2.0, "text": "\ud800"}',
    "time as text": b'{"step": 1, "loss": 2.0, "logged_at": "now"}',
    "event as list": b'{"step": 1, "event": []}',
}


@pytest.fixture(autouse=True)
def _logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("pretraining"), "propagate", True)


def write_log(run_dir: Path, place: int, damaged: bytes) -> Path:
    """At the end there is no line break after it, as a kill or a power cut leaves it."""
    (run_dir / "run.json").write_text("{}")
    lines = [*LINES[:place], damaged, *LINES[place:]]
    (run_dir / "metrics.jsonl").write_bytes(b"\n".join(lines) + (b"\n" if place < len(LINES) else b""))
    return run_dir


def resume(run_dir: Path) -> list[dict[str, Any]]:
    MetricsLog(run_dir).forget_after(9, [])
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize("place", [0, 2, len(LINES)])
@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.guarantee("A damaged log does not end a run.")
def test_all_other_records_are_read(
    damaged: bytes, place: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = write_log(tmp_path, place, damaged)
    original = (run_dir / "metrics.jsonl").read_bytes()
    assert last_reported_step(run_dir) == 3
    assert caplog.messages == []
    warning = f"{run_dir}/metrics.jsonl: line {place + 1} is damaged"
    assert list(read_records(run_dir)) == RECORDS
    assert read_history(run_dir).last == RECORDS[3]
    assert caplog.messages == [f"{warning} and ignored"] * 2, "one for each reading"

    caplog.clear()
    assert resume(run_dir) == RECORDS
    assert caplog.messages == [f"{warning} and dropped; the log as it was is {run_dir}/metrics.jsonl.damaged"]
    assert (run_dir / "metrics.jsonl.damaged").read_bytes() == original
    caplog.clear()
    resume(run_dir)
    assert caplog.messages == [], "the log is sound now"


def test_an_earlier_damaged_log_is_not_overwritten(tmp_path: Path) -> None:
    for number, damaged in enumerate((b"first", b"second"), start=1):
        resume(write_log(tmp_path, 1, damaged))
        name = "metrics.jsonl.damaged" if number == 1 else "metrics.jsonl.damaged-2"
        assert damaged in (tmp_path / name).read_bytes()
    assert b"first" in (tmp_path / "metrics.jsonl.damaged").read_bytes()


def test_the_damaged_log_of_another_run_stays_where_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other, run_dir = tmp_path / "other", tmp_path / "run"
    other.mkdir()
    run_dir.mkdir()
    write_log(other, 0, b"{")
    MetricsLog(run_dir, parent_log=other / "metrics.jsonl").forget_after(2, [])
    assert len((run_dir / "metrics.jsonl").read_bytes().splitlines()) == 3, "those until step 2"
    assert caplog.messages[0].endswith(f"line 1 is damaged and dropped; the log as it was is {other}/metrics.jsonl")
    assert {path.name for path in other.iterdir()} == {"run.json", "metrics.jsonl"}


def test_damaged_lines_are_named_up_to_a_limit() -> None:
    assert describe_damage(Path("log"), [1, 2, 3, 7]) == "log: lines 1, 2, 3, 7 are damaged"
    many = describe_damage(Path("log"), list(range(1, 1001, 2)))
    assert many.startswith("log: lines 1, 3, 5, ")
    assert many.endswith(", 39 and 480 others are damaged")


def test_a_hole_in_the_file_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretraining.runs.tracking.metrics_file.MAX_LINE_BYTES", 100)
    run_dir = write_log(tmp_path, 1, b"\x00" * 1050)
    assert list(read_records(run_dir)) == RECORDS


def test_metrics_of_tasks_are_found_and_shown_whatever_they_are() -> None:
    record = {"task/a/acc": 0.5, "task/a/num_examples": 7, "task/b-2/perplexity": "inf", "task_seconds": 1.0}
    record |= {"task/": 1, "task/a/b/c": 1, "eval_loss": 2.0, "task/c/acc": None}
    found = task_metrics(record)
    assert found == {"a": {"acc": 0.5, "num_examples": 7}, "b-2": {"perplexity": "inf"}, "c": {"acc": None}}
    assert [describe_task(one) for one in found.values()] == ["acc 50.0%, 7 examples", "perplexity inf", "acc None"]
