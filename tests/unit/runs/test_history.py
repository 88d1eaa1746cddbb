import json
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.runs.history import read_history


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


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json"):
        read_history(tmp_path)
