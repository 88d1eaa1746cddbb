import os
import shlex
import time
from pathlib import Path

import pytest

from pretraining.system.launchers import SUPERVISOR_VARIABLE, process_age_seconds
from pretraining.system.processes import ProcessHandle
from pretraining.system.supervision import (
    Restart,
    absence_exit_code,
    attempt_environment,
    forget_exit_codes,
    record_exit_code,
    recorded_exit_code,
    register_process,
    registered_processes,
    run_age_seconds,
    this_restart,
)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({}, None),
        ({0: 0}, None),
        ({0: 0, 1: 0}, 0),
        ({0: 75, 1: 75}, 75),
        ({0: 75}, None),  # rank 1 was killed, and the launcher had rank 0 stop
        ({0: 75, 1: 1}, 1),
        ({0: 75, 1: 2}, 2),
        ({1: 2}, 2),
        ({0: 130, 1: 75}, 130),
        ({0: 3, 1: 3}, 3),
        ({0: 3}, None),
        ({0: 3, 1: 1}, 1),
    ],
)
def test_a_stop_counts_when_every_rank_stopped(
    codes: dict[int, int], expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SUPERVISOR_VARIABLE, str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank, code in codes.items():
        monkeypatch.setenv("RANK", str(rank))
        record_exit_code(code)
    assert recorded_exit_code(tmp_path) == expected


def test_codes_of_an_earlier_program_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four ranks of an earlier launcher, then two: rank 1 ends before rank 0 has started."""
    monkeypatch.setenv(SUPERVISOR_VARIABLE, str(tmp_path))
    for launcher, size in (("first", 4), ("second", 2)):
        monkeypatch.setenv("PRETRAINING_LAUNCHER", launcher)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(size))
        for rank in reversed(range(size)):
            monkeypatch.setenv("RANK", str(rank))
            forget_exit_codes()
            record_exit_code(2 if launcher == "first" else 75)
    assert recorded_exit_code(tmp_path) == 75
    assert len(list(tmp_path.iterdir())) == 2
    forget_exit_codes()
    assert [path.name for path in tmp_path.iterdir()] == ["1.exit"], "of rank 0 its own alone"


def test_a_restart_is_known_to_its_processes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUPERVISOR_VARIABLE, str(tmp_path))
    assert this_restart() is None
    assert absence_exit_code() == 2
    record_exit_code(2)
    restart = Restart(1, "attempt 1 ended with exit code 1", 5.0)
    for name, value in attempt_environment(tmp_path, restart).items():
        monkeypatch.setenv(name, value)
        assert shlex.quote(value) == value, "deepspeed does not quote it"
    assert this_restart() == restart
    assert absence_exit_code() == 1, "a machine that has died may still be booting"
    assert recorded_exit_code(tmp_path) is None
    monkeypatch.delenv(SUPERVISOR_VARIABLE)
    assert this_restart() is None
    record_exit_code(2)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_torchrun_started_again_are_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SUPERVISOR_VARIABLE, raising=False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert this_restart() is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    restart = this_restart()
    assert restart is not None
    assert restart.number == 2
    age = process_age_seconds(os.getppid())
    assert run_age_seconds() == pytest.approx(age, abs=5), "as old as torchrun"


def test_another_machine_counts_from_the_same_wall_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was booted at another time: the supervisor's clock was at 5 s an hour ago."""
    an_hour_ago = time.time() - 3600
    restart = Restart(1, "a crash", 5.0, an_hour_ago - 5.0, boot_id="the first machine")
    for name, value in attempt_environment(tmp_path, restart).items():
        monkeypatch.setenv(name, value)
    assert 3599 < run_age_seconds() < 3700


def test_a_rank_is_registered_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUPERVISOR_VARIABLE, str(tmp_path))
    register_process()
    assert registered_processes(tmp_path) == [ProcessHandle.of(os.getpid())]
    (tmp_path / "1.process").write_text("1-5 another machine")
    (tmp_path / "2.process").write_text("")
    assert registered_processes(tmp_path) == [ProcessHandle.of(os.getpid())]
    attempt_environment(tmp_path, None)
    assert registered_processes(tmp_path) == []
