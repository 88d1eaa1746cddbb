"""The log of a run besides its records: the time of each, events once, and the warnings of a training."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonlines
import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from pretraining.cli.logs import HAS_EVENT
from pretraining.runs.checkpoints import METRICS_NAME
from pretraining.runs.metrics import MetricsLog

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
    logger.warning("a spike, of which there is an event", extra=HAS_EVENT)
    logger.info("all is well")
    logging.getLogger("elsewhere").warning("not ours")
    told = [(record["step"], record["event"], record.get("message")) for record in read(tmp_path)]
    assert told == [(3, "start", None), (5, "warning", "the disk has 7 bytes")]


def test_other_processes_write_nothing(tmp_path: Path, state: TrainerState) -> None:
    state.is_world_process_zero = False
    begin(tmp_path, state)
    logging.getLogger("pretraining").warning("of another process")
    assert not (tmp_path / METRICS_NAME).exists()
