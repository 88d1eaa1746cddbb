"""The log of a run besides its records: the time of each, events once, and the warnings of a training."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonlines
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from pretraining.cli.logs import LOGGED_AS_EVENT
from pretraining.runs.run_folder import METRICS_NAME
from pretraining.runs.tracking.metrics_log import MetricsLog

NOTHING: Any = None
START = {"resumed_from": None, "num_processes": 2, "num_parameters": 7}


def read(run_dir: Path) -> list[dict[str, Any]]:
    with jsonlines.open(run_dir / METRICS_NAME) as reader:
        return list(reader)


@pytest.fixture
def state() -> Iterator[TrainerState]:
    logger = logging.getLogger("pretraining")
    handlers = list(logger.handlers)
    yield TrainerState(global_step=3, max_steps=9, is_world_process_zero=True)
    logger.handlers = handlers


def begin(run_dir: Path, state: TrainerState) -> MetricsLog:
    log = MetricsLog(run_dir, start=START)
    log.on_train_begin(TrainingArguments(output_dir=str(run_dir), use_cpu=True), state, TrainerControl())
    return log


def test_each_start_is_told_and_what_a_resume_meets_again_is_not(tmp_path: Path, state: TrainerState) -> None:
    spike = {"step": 4, "event": "spike", "score": float("inf")}
    for _ in range(2):
        begin(tmp_path, state).write_event(spike)
    told = [(record["event"], record["step"]) for record in read(tmp_path)]
    assert told == [("start", 3), ("spike", 4), ("start", 3)]
    assert all(record["logged_at"] > 1e9 for record in read(tmp_path))


def test_the_warnings_of_a_training_are_events(tmp_path: Path, state: TrainerState) -> None:
    logging.getLogger("pretraining.training").warning("before it began")
    begin(tmp_path, state)
    state.global_step = 5
    logger = logging.getLogger("pretraining.training.somewhere")
    logger.warning("the disk has %d bytes", 7)
    logger.warning("a spike, of which there is an event", extra=LOGGED_AS_EVENT)
    logger.info("all is well")
    logging.getLogger("elsewhere").warning("not ours")
    told = [(record["step"], record["event"], record.get("message")) for record in read(tmp_path)]
    assert told == [(3, "start", None), (5, "warning", "the disk has 7 bytes")]


def test_other_processes_write_nothing(tmp_path: Path, state: TrainerState) -> None:
    state.is_world_process_zero = False
    begin(tmp_path, state)
    logging.getLogger("pretraining").warning("of another process")
    assert not (tmp_path / METRICS_NAME).exists()


def test_a_disk_that_takes_nothing_more_ends_no_run(tmp_path: Path, state: TrainerState) -> None:
    log = begin(tmp_path, state)
    path = tmp_path / METRICS_NAME
    path.rename(tmp_path / "kept")
    path.mkdir()  # cannot be appended to, nor be made shorter, as with a disk that is read-only since an error
    for step in (4, 5, 6):
        log.on_log(NOTHING, TrainerState(global_step=step, is_world_process_zero=True), NOTHING, logs={"loss": 1.0})
    log.write_event({"step": 5, "event": "spike"})
    log.forget_after(5, [])  # a rollback
    log.sync()
    path.rmdir()
    (tmp_path / "kept").rename(path)
    log.write_event({"step": 5, "event": "save"})
    told = [(record["step"], record.get("event", "loss")) for record in read(tmp_path) if record["step"] > 3]
    assert told == [(4, "loss"), (5, "loss"), (5, "spike"), (5, "save")], "of step 6 there will be another"


def test_a_warning_of_a_name_that_is_no_text_is_written(
    tmp_path: Path, state: TrainerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path, state)
    logger = logging.getLogger("pretraining")
    monkeypatch.setattr(logger, "propagate", False)  # pytest would record it, and cannot send it to another process
    logger.warning("odd: %s", b"a\xff".decode("utf-8", "surrogateescape"))
    assert read(tmp_path)[-1]["message"] == r"odd: a\udcff"


def test_what_is_known_of_events_does_not_grow_with_the_run(tmp_path: Path, state: TrainerState) -> None:
    log = begin(tmp_path, state)
    for step in range(10, 40):
        for _ in range(2):
            log.write_event({"step": step, "event": "spike"})
    assert [record["step"] for record in read(tmp_path)] == [3, *range(10, 40)]
    assert len(log._events) == 1
