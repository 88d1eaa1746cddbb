"""What a run logs about how to stop it."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretraining.training.stopping.callback import StopCallback
from pretraining.training.stopping.request import StopRequest


@pytest.mark.parametrize(("seconds", "num_warnings"), [(19.0, 0), (180.0, 1)])
def test_a_save_longer_than_launchers_wait_is_warned_of_once_with_other_ways_to_stop(
    seconds: float, num_warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pretraining"), "propagate", True)
    arguments = SimpleNamespace(durability=SimpleNamespace(max_hours=None), plan=SimpleNamespace(profile_plan=False))
    run = SimpleNamespace(run_dir=tmp_path, arguments=arguments)
    trainer: Any = SimpleNamespace(run_config=run, saver=SimpleNamespace(longest_seconds=seconds))
    stopping = StopCallback(trainer, metrics_log=None, request=StopRequest())  # type: ignore[arg-type]
    for _ in range(2):
        stopping._track_save_duration()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == num_warnings
    for message in messages:
        assert message.startswith("a save takes 180 s, and launchers kill 30 s after Ctrl-C or SIGTERM: ")
        assert message.endswith(
            f"`touch {tmp_path}/STOP`, or have SIGUSR1 sent early, e.g. by sbatch --signal=USR1@420"
        )
