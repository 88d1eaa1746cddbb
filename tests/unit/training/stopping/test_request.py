import time
from pathlib import Path
from typing import Any

import pytest

from pretraining.system.launchers import process_age_seconds
from pretraining.system.supervision import Restart, attempt_environment, boot_seconds, run_age_seconds, run_started_at
from pretraining.training.stopping import request
from pretraining.training.stopping.request import TimeLimit

# Between two looks at a clock, however busy the machine is; what would be taken for it is 2 hours or more.
CLOSE_SECONDS = 600


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(request.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(request, "run_age_seconds", lambda: 600.0)

    def is_reached(self, limit: TimeLimit, at: float) -> bool:
        self.now = at
        return limit.is_reached()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("hours", "save", "reached_at"),
    [(2.0, 0.0, 7600 - 120 - 30), (2.0, 500.0, 7600 - 500 - 30), (0.2, 0.0, 1120 - 72 - 30)],
)
def test_there_is_room_for_a_save_and_some_steps(clock: Any, hours: float, save: float, reached_at: float) -> None:
    """The process began at 400, so 2 hours end at 7600; one that has 12 minutes does not keep two of them."""
    limit = TimeLimit(hours)
    limit.longest_save = save
    limit.begin_step()
    clock.now += 10
    limit.end_step()
    assert not clock.is_reached(limit, reached_at - 1)
    assert clock.is_reached(limit, reached_at + 1)


def restarted(folder: Path, started_at: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be the second restart of a run."""
    for name, value in attempt_environment(folder, Restart(2, "a crash", started_at)).items():
        monkeypatch.setenv(name, value)


def test_a_restarted_run_has_no_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began_at = boot_seconds() - 1e6
    assert run_age_seconds() == pytest.approx(process_age_seconds(), abs=CLOSE_SECONDS)
    restarted(tmp_path, began_at, monkeypatch)
    assert run_age_seconds() == pytest.approx(1e6, abs=CLOSE_SECONDS)


@pytest.mark.parametrize("jump", [-7200.0, 0.0, 7200.0])
@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_clock_that_is_set_changes_neither_the_age_of_a_run_nor_whose_files_are_its_own(
    jump: float, is_restarted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    started_at = real() - run_age_seconds()
    if is_restarted:
        started_at = real() - 1000
        restarted(tmp_path, boot_seconds() - 1000, monkeypatch)
    age = run_age_seconds()
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    assert run_age_seconds() == pytest.approx(age, abs=CLOSE_SECONDS)
    assert run_started_at() == pytest.approx(started_at + min(jump, 0), abs=CLOSE_SECONDS)
    made_before_the_jump, made_now = started_at + 10, real() + jump
    assert run_started_at() < min(made_before_the_jump, made_now)


def test_without_hours_a_run_has_time(clock: Any) -> None:
    assert not clock.is_reached(TimeLimit(None), 1e12)
    assert TimeLimit(None).description() is None
