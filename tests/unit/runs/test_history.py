import json
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.runs.history import RunCost, read_history


def test_every_record_is_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"num_parameters": 7}')
    records = [{"step": 1, "loss": 2.0}, {"step": 1, "eval_loss": 3.0}, {"step": 1, "event": "save"}]
    records.append({"step": 1, "test_loss": 4.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 2, "l')
    history = read_history(tmp_path)
    assert history.run_record == {"num_parameters": 7}
    found = [history.last, history.evaluations["eval"], *history.events, history.evaluations["test"]]
    assert found == records
    assert history.cost.hours is None
    assert read_history(tmp_path, until_step=0).last == {}


def test_the_shares_of_the_time_count_what_follows_the_last_record() -> None:
    """The first start was killed after 40 s of steps, the second ended with an evaluation after its last record."""
    cost = RunCost({"hardware": {"num_processes": 2}})
    steps = {"interval_seconds": 20.0, "forward_backward_seconds": 15.0, "evaluation_seconds": 0.0}
    cost.add({"step": 0, "event": "start", "num_processes": 2})
    for step in (1, 2):
        cost.add({"step": step, "loss": 2.0, **steps})
    assert cost.shares == {"forward_backward": 0.75, "evaluation": 0.0}
    cost.add({"step": 2, "event": "start", "num_processes": 4})
    cost.add({"step": 3, "loss": 2.0, **steps})
    summary = {"total_seconds": 60.0, "forward_backward_seconds": 20.0, "evaluation_seconds": 40.0}
    cost.add({"step": 3, "event": "summary", **summary})
    assert cost.shares == {"forward_backward": 0.5, "evaluation": 0.4}
    assert (cost.hours, cost.process_hours) == (100 / 3600, (2 * 40 + 4 * 60) / 3600)
    cost.add({"step": 3, "event": "summary", "total_seconds": "nan"})
    assert cost.hours == 100 / 3600, "a damaged summary does not take time away"


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json"):
        read_history(tmp_path)
