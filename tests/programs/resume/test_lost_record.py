"""A lost, empty or cut run.json: the copy in the newest checkpoint takes its place."""

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch

from pretraining.runs.checksums import read_complete, record_file, write_manifest
from pretraining.runs.export.zero_shards import config_of_checkpoint
from pretraining.runs.record_file import read_run_record
from tests.conftest import assert_one_error, python
from tests.programs.launching import figures, records, run_forked_fine, train, try_to_train

pytestmark = pytest.mark.launch

FLAGS = ["--lr_scheduler_type", "constant", "--eval_strategy", "no", "--export", "false"]


@pytest.fixture(scope="module")
def finished(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 steps with checkpoints of steps 2 and 3."""
    run_dir = tmp_path_factory.mktemp("lost") / "run"
    train("1 rank", sample_store, run_dir, *FLAGS, "--max_steps", 3, "--save_steps", 2)
    return run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def edit(path: Path, *, python_version: str, torch_version: str) -> None:
    record = json.loads(path.read_text())
    record["python"], record["packages"]["torch"] = python_version, torch_version
    path.write_text(json.dumps(record))


def complete_again(checkpoint: Path) -> None:
    """Let complete.json list what is there now."""
    content = read_complete(checkpoint)
    paths = [checkpoint / file["path"] for file in content["files"]]
    files = [record_file(checkpoint, path) for path in paths if path.is_file()]
    write_manifest(checkpoint, files, step=content["step"], num_processes=content["num_processes"])


def test_each_checkpoint_has_a_copy_that_counts(run_dir: Path) -> None:
    for step in (2, 3):
        checkpoint = run_dir / f"checkpoint-{step}"
        assert json.loads((checkpoint / "run.json").read_text()) == read_run_record(run_dir)
        assert "run.json" in [file["path"] for file in read_complete(checkpoint)["files"]]


@pytest.mark.guarantee("A lost run.json does not end a run.")
def test_a_run_resumes_without_its_record(run_dir: Path, sample_store: Path) -> None:
    """As it would with it: another run is refused, other versions are named, and the record is there again."""
    before = read_run_record(run_dir)
    checkpoint = run_dir / "checkpoint-3"
    edit(checkpoint / "run.json", python_version="3.9.1", torch_version="1.0")
    complete_again(checkpoint)
    (run_dir / "run.json").unlink()
    more = [*FLAGS, "--max_steps", 4]
    done = try_to_train("1 rank", sample_store, run_dir, *more, "--data_seed", 7)
    assert_one_error(done, "--resume: order_seed differs from that of")
    done = train("1 rank", sample_store, run_dir, *more)
    lines = [line for line in done.stderr.splitlines() if line.startswith("warning: ") and "run.json" in line]
    assert lines == [
        f"warning: {run_dir}/run.json: cannot be read (No such file or directory); using its copy {checkpoint}/run.json"
    ]
    versions = [line for line in done.stderr.splitlines() if "other versions" in line]
    assert len(versions) == 1
    assert f"torch 1.0 -> {torch.__version__}" in versions[0]
    assert "Python 3.9.1 -> 3." in versions[0]
    assert "transformers" not in versions[0]
    record = json.loads((run_dir / "run.json").read_text())
    assert record["identity"] == before["identity"]
    assert [start["python"] for start in record["earlier_starts"]] == ["3.9.1"]
    assert len(figures(run_dir)) == 4

    (run_dir / "run.json").write_text('{"identity": {"da')  # as a bad disk leaves it
    done = train("1 rank", sample_store, run_dir, *FLAGS, "--max_steps", 5)
    assert done.stderr.count("run.json: is damaged (not JSON: ") == 1
    assert (run_dir / "run.json.damaged").read_text() == '{"identity": {"da'
    assert len(json.loads((run_dir / "run.json").read_text())["earlier_starts"]) == 2
    assert [record["step"] for record in records(run_dir)] == [1, 2, 3, 4, 5]


def test_a_model_is_made_without_the_record(run_dir: Path) -> None:
    for path in run_dir.glob("checkpoint-*/model.safetensors"):
        path.unlink()
        complete_again(path.parent)
    (run_dir / "run.json").unlink()
    done = run_forked_fine(*python("generate.py", "--model", run_dir, "--prompt", "a", "--max_new_tokens", 2))
    assert "checkpoint-3" in done.stderr
    words = ["-m", "tools.checkpoints", "export", run_dir / "checkpoint-2", run_dir.parent / "model"]
    assert "exported model: " in run_forked_fine(sys.executable, *words).stderr
    assert config_of_checkpoint(run_dir / "checkpoint-2").dtype == torch.float32, "fp32 as in run.json"


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"identity": []}', '{"num_parameters": "7"}', "\x00" * 100])
def test_any_damage_is_noticed(damaged: str, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = read_run_record(run_dir)
    (run_dir / "run.json").write_text(damaged)
    logging.getLogger("pretraining").propagate = True
    assert read_run_record(run_dir) == read_run_record(run_dir) == before
    assert len(caplog.messages) == 1
    assert f"using its copy {run_dir}/checkpoint-3/run.json" in caplog.messages[0]


def test_checkpoints_without_a_copy_need_the_record(run_dir: Path, sample_store: Path) -> None:
    """As earlier versions saved them."""
    for checkpoint in run_dir.glob("checkpoint-*"):
        (checkpoint / "run.json").unlink()
        complete_again(checkpoint)
    (run_dir / "run.json").unlink()
    done = try_to_train("1 rank", sample_store, run_dir, *FLAGS, "--max_steps", 4)
    assert_one_error(done, f"{run_dir}/run.json: ", "no checkpoint has a copy of it; restore it from a backup")
