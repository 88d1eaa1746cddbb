"""Which folders hold a model, and which models a run has saved."""

import json
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.runs.model_source import find_model, saved_models


def test_all_saved_models_of_a_run_by_step(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "exports/step-5").mkdir(parents=True)
    (run_dir / "exports/step-10").mkdir()
    for name in ("step-10.partial", "step-11.partial-2", "step-7.superseded", "step-", "step-one"):
        (run_dir / "exports" / name).mkdir()
    (run_dir / "exports/step-8").touch()
    (run_dir / "run.json").write_text('{"arguments": {"max_steps": 12}}')
    exports = [run_dir / "exports/step-5", run_dir / "exports/step-10"]
    assert saved_models(run_dir) == exports
    (run_dir / "model").mkdir()
    assert saved_models(run_dir) == [*exports, run_dir / "model"]
    (run_dir / "exports/step-12").mkdir()
    assert saved_models(run_dir) == [*exports, run_dir / "exports/step-12"], "the final model is the last export"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/run.json").write_text('{"arguments": {"max_steps": 9}}')
    with pytest.raises(UserError, match="neither an exported model nor a complete checkpoint"):
        saved_models(tmp_path / "empty")


def test_the_model_of_a_run_that_reached_its_target_is_of_that_step(tmp_path: Path) -> None:
    (tmp_path / "exports/step-8").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "run.json").write_text('{"arguments": {"max_steps": 12, "target_loss": 2.0}}')
    events = [(5, "target reached"), (8, "target reached"), (8, "summary")]
    lines = [json.dumps({"step": step, "event": event}) for step, event in events]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert saved_models(tmp_path) == [tmp_path / "exports/step-8"]
    (tmp_path / "metrics.jsonl").write_text(lines[0] + "\n")
    assert saved_models(tmp_path) == [tmp_path / "exports/step-8", tmp_path / "model"]


def test_what_is_not_a_model_is_one_line(tmp_path: Path) -> None:
    file, pickled = tmp_path / "file", tmp_path / "pickled"
    file.touch()
    pickled.mkdir()
    (pickled / "pytorch_model.bin").touch()
    for name, message in {
        str(file): "is a file; pass the folder that contains it",
        str(tmp_path): r"is not a run, exported model or checkpoint \(no \*\.safetensors, no ZeRO shards\)",
        str(pickled): r"has pickled weights \(pytorch_model\.bin\), which can run code",
        "/no/such/folder": "is neither a folder nor a Hub id",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            find_model(name)
        assert len(str(caught.value).splitlines()) == 1
