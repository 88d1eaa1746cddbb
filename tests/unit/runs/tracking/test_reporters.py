"""What is told to TensorBoard and to trackers, and how each is told where it writes."""

import importlib.util
import json
import os
import sqlite3
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from pretraining.cli.arguments.pretrain import parse_pretrain_arguments
from pretraining.errors import UserError
from pretraining.runs.tracking.reporters import Reporters, TrackedRun, last_reported_step
from tests.programs.launching import train, try_to_train

NOTHING: Any = None


class Told(TrainerCallback):
    """Stands for a tracker of the Trainer."""

    __module__ = "transformers.integrations.integration_utils"

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.steps: list[int] = []
        self.ends = 0
        self.fails_at = fails_at

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.global_step == self.fails_at:
            raise ConnectionError("away")
        self.steps.append(state.global_step)
        self.logs = logs

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends += 1


def tell(callback: TrainerCallback, *steps: int, name: str = "loss") -> None:
    for step in steps:
        callback.on_log(NOTHING, SimpleNamespace(global_step=step), NOTHING, logs={name: 1.0})


def test_a_tracker_is_not_told_again_what_the_killed_run_told() -> None:
    told = Told()
    Reporters([told], reported_until=5)
    tell(told, 4, 5)
    tell(told, 4, 5, name="eval_loss")
    tell(told, 6)
    assert told.steps == [5, 6], "the evaluation of the last step may be missing"


def test_a_part_of_validation_has_its_own_curve() -> None:
    told, state, task = Told(), SimpleNamespace(global_step=1), {"task/t/acc": 0.5}
    Reporters([told], reported_until=0)
    told.on_log(NOTHING, state, NOTHING, logs={"eval_loss": 2.0, "eval_loss/news": 3.0, "eval_blocks": 8, **task})
    assert told.logs == {"eval_part_loss": 2.0, "eval_part_loss/news": 3.0, "eval_part_blocks": 8, **task}
    for whole in ({"eval_loss": 2.0, **task}, {"loss": 2.0}, {"test_loss": 2.0}):
        told.on_log(NOTHING, state, NOTHING, logs=whole)
        assert told.logs == whole


def test_a_reporter_ends_after_the_last_evaluation(caplog: pytest.LogCaptureFixture) -> None:
    told, failing = Told(), Told(fails_at=2)
    reporters = Reporters([told, failing], reported_until=0)
    tell(told, 1, 2)
    tell(failing, 1, 2, 3)
    for callback in (told, failing):
        callback.on_train_end(NOTHING, NOTHING, NOTHING)
    assert (told.ends, failing.ends) == (0, 0)
    tell(told, 2, name="test_loss")
    trainer: Any = SimpleNamespace(args=None, state=None, control=None, model=None)
    reporters.end(trainer)
    assert (told.steps, told.ends) == ([1, 2, 2], 1)
    assert (failing.steps, failing.ends) == ([1], 0), "one that failed is left alone"


def test_the_newest_step_that_was_told_is_that_of_the_log(tmp_path: Path) -> None:
    assert last_reported_step(tmp_path) == 0
    lines = ['{"step": 7, "loss": 1.0}', '{"step": 9, "event": "stop"}', '{"step": 8, "loss": 1.0}', '{"step": 10, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert last_reported_step(tmp_path) == 8


def arguments(run_dir: Path, *trackers: str) -> TrainingArguments:
    return TrainingArguments(output_dir=str(run_dir), use_cpu=True, report_to=list(trackers), project="ours")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment that says nothing of any tracker, and is put back."""
    for name in [name for name in os.environ if name.startswith(("WANDB", "MLFLOW"))]:
        monkeypatch.delenv(name)
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_RESUME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return monkeypatch


def test_without_a_key_wandb_writes_here_and_asks_nobody(
    clean: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = arguments(tmp_path, "wandb")
    TrackedRun(args, tmp_path, resumes=False)
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_DIR"]) == ("offline", str(tmp_path))
    assert (os.environ["WANDB_PROJECT"], os.environ["WANDB_RESUME"]) == ("ours", "allow")
    assert args.run_name is not None
    assert args.run_name.startswith(f"{tmp_path.name}-")


@pytest.mark.parametrize("place", ["environment", "netrc", "their own mode"])
def test_with_a_key_wandb_does_as_it_is_configured(place: str, clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if place == "environment":
        clean.setenv("WANDB_API_KEY", "k" * 40)
    elif place == "netrc":
        (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'k' * 40}\n")
        (tmp_path / "netrc").chmod(stat.S_IRUSR)
    else:
        clean.setenv("WANDB_MODE", "disabled")
    TrackedRun(arguments(tmp_path, "wandb"), tmp_path, resumes=False)
    assert os.environ.get("WANDB_MODE") == ("disabled" if place == "their own mode" else None)


def test_only_a_run_that_goes_on_goes_on_in_the_trackers(clean: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = {"name": "run-1", "WANDB_RUN_ID": "id-1"}
    (tmp_path / "trackers.json").write_text(json.dumps(kept))
    args = arguments(tmp_path, "wandb")
    TrackedRun(args, tmp_path, resumes=True)
    assert (args.run_name, os.environ["WANDB_RUN_ID"]) == ("run-1", "id-1")
    clean.delenv("WANDB_RUN_ID")
    other = arguments(tmp_path, "wandb")
    TrackedRun(other, tmp_path, resumes=False)
    assert other.run_name != "run-1"
    assert os.environ["WANDB_RUN_ID"] != "id-1"


@pytest.mark.parametrize(("uri", "is_kept"), [("sqlite:///a@b.db", True), ("https://me:secret@there/mlflow", False)])
def test_no_password_goes_into_the_run_folder(
    uri: str, is_kept: bool, clean: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = SimpleNamespace(info=SimpleNamespace(run_id="id-1"))
    stand_in = SimpleNamespace(active_run=lambda: run, get_tracking_uri=lambda: uri)
    clean.setitem(sys.modules, "mlflow", stand_in)
    args = arguments(tmp_path, "mlflow")
    (tmp_path / "trackers.json").write_text("")  # a power cut
    TrackedRun(args, tmp_path, resumes=True).on_train_begin(
        args, TrainerState(is_world_process_zero=True), TrainerControl()
    )
    kept = json.loads((tmp_path / "trackers.json").read_text())
    assert kept["MLFLOW_RUN_ID"] == "id-1"
    assert kept.get("MLFLOW_TRACKING_URI") == (uri if is_kept else None)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_there_is_told_before_anything_starts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None if package == name else found(package))
    with pytest.raises(UserError, match=f"--report_to {name}: is not installed; pip install {name}"):
        parse_pretrain_arguments("", ["--report_to", name])


def test_a_misspelled_tracker_is_refused() -> None:
    with pytest.raises(UserError, match="--report_to tensorbord: is not one of tensorboard, wandb"):
        parse_pretrain_arguments("", ["--report_to", "tensorbord"])


@pytest.mark.parametrize("words", [[], ["--trainer_arguments", "trackio_static_space_id=none"]])
def test_trackio_makes_nothing_on_the_hub_by_itself(words: list[str]) -> None:
    found = parse_pretrain_arguments("", words).trainer
    assert found["trackio_static_space_id"] is False
    assert found.get("trackio_space_id") is None


@pytest.mark.launch
@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_tracker_is_told_each_step_once_across_a_kill(name: str, sample_store: Path, tmp_path: Path) -> None:
    pytest.importorskip(name)
    env = {"HOME": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline"}
    env |= {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    flags = ["--save_steps", 3, "--eval_strategy", "no", "--report_to", name]
    crashing = {**env, "CRASHES": json.dumps([[0, 6, "SIGKILL"]])}
    script = "tests/faults/drivers/crashing_run.py"
    try_to_train("1 rank", sample_store, tmp_path / "run", *flags, script=script, env=crashing)
    begun = json.loads((tmp_path / "run/trackers.json").read_text())
    train("1 rank", sample_store, tmp_path / "run", *flags, env=env)
    assert json.loads((tmp_path / "run/trackers.json").read_text()) == begun
    if name == "mlflow":
        import mlflow

        client = mlflow.MlflowClient(env["MLFLOW_TRACKING_URI"])
        points = client.get_metric_history(begun["MLFLOW_RUN_ID"], "loss")
        assert [point.step for point in points] == [1, 2, 3, 4, 5, 6]
        assert len(client.search_runs([client.get_experiment_by_name("pretraining").experiment_id])) == 1
    elif name == "wandb":
        runs = list((tmp_path / "run/wandb").glob(f"offline-run-*-{begun['WANDB_RUN_ID']}"))
        assert len(runs) == 2
    else:
        (database,) = (tmp_path / "trackio").glob("*.db")
        with sqlite3.connect(database) as connection:
            rows = connection.execute("select run_name, metrics from metrics order by id").fetchall()
        told = [(name, json.loads(figures)) for name, figures in rows]
        steps = [(name, figures["train/global_step"]) for name, figures in told if "train/loss" in figures]
        assert steps == [(begun["name"], step) for step in range(1, 7)]
