"""When a target is reached, and what is recorded of it. tests/programs/pretrain/test_target_loss.py has whole runs."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from pretraining.errors import TARGET_MISSED_EXIT_CODE
from pretraining.training.stopping.target_loss import TargetLoss

LAST_STEP = 600


def ended(mean: float | None, *, step: int, is_begun: bool = True) -> tuple[TargetLoss, TrainerState, list[dict]]:
    """A run with the target 2.0 that has this mean loss after a step, or where it resumes; its end, and its events."""
    state, events = TrainerState(global_step=step, max_steps=LAST_STEP), []
    log: Any = SimpleNamespace(write_event=events.append)
    loader = SimpleNamespace(end=lambda: events.append({"event": "no more blocks"}))
    args = TrainingArguments("unused", eval_strategy="steps", save_strategy="steps", use_cpu=True)
    metrics = SimpleNamespace(window_loss=mean, num_window_losses=20 if mean is None else 50)
    trainer: Any = SimpleNamespace(step_metrics=metrics, loader=loader, args=args, is_world_process_zero=lambda: True)
    target, control = TargetLoss(trainer, log, 2.0), TrainerControl()
    if is_begun:
        target.step_end(state, control)
        flags = (control.should_training_stop, control.should_evaluate, control.should_save)
        assert flags == (target.is_reached,) * 3
    else:
        target.train_begin(state, control)
    target.train_end(state, control)
    return target, state, events


@pytest.mark.parametrize("mean", [1.99, 2.0, None])
def test_a_run_ends_below_its_target_and_not_at_it(mean: float | None) -> None:
    _, state, events = ended(mean, step=100)
    is_reached = mean == 1.99
    assert state.max_steps == (100 if is_reached else LAST_STEP)
    assert [event["event"] for event in events] == ["target reached"] * is_reached


def test_a_run_that_resumes_where_it_has_reached_its_target_reads_nothing() -> None:
    target, state, events = ended(1.99, step=100, is_begun=False)
    assert state.max_steps == 100
    assert [event["event"] for event in events] == ["no more blocks", "target reached"]
    assert target.exit_code() == 0


@pytest.mark.parametrize(("num_left", "warns"), [(30, False), (29, True), (1, True), (0, False)])
def test_too_few_losses_for_the_rest_of_the_run_are_a_warning(
    num_left: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """20 are known, as after 20 steps on a checkpoint of an earlier version; 30 more make a window."""
    ended(None, step=LAST_STEP - num_left, is_begun=False)
    message = (
        f"--target_loss 2: will be missed: it needs 50 losses, the checkpoint has 20, and {num_left} steps are left"
    )
    assert (message in caplog.text) == warns
    assert bool(caplog.records) == warns


@pytest.mark.parametrize("mean", [2.0, None])
def test_a_run_that_never_was_below_its_target_has_an_exit_code(mean: float | None) -> None:
    target, _, events = ended(mean, step=LAST_STEP, is_begun=False)
    assert events == [{"step": LAST_STEP, "event": "target missed", "target_loss": 2.0, "mean_loss": mean}]
    assert target.exit_code() == TARGET_MISSED_EXIT_CODE
