"""What a run says about how to stop it."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pretraining.training.stopping.callback import StopCallback
from pretraining.training.stopping.request import StopRequest


@pytest.mark.parametrize(("seconds", "num_said"), [(19.0, 0), (180.0, 1)])
def test_a_save_that_no_launcher_waits_for_is_told_once_with_the_other_ways(
    seconds: float, num_said: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pretraining"), "propagate", True)
    arguments = SimpleNamespace(durability=SimpleNamespace(max_hours=None))
    plan = SimpleNamespace(run_dir=tmp_path, arguments=arguments)
    trainer: Any = SimpleNamespace(plan=plan, saver=SimpleNamespace(longest_seconds=seconds))
    stopping = StopCallback(trainer, metrics_log=None, request=StopRequest())  # type: ignore[arg-type]
    for _ in range(2):
        stopping._look_at_saves()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == num_said
    for message in said:
        assert message.startswith("a save takes 180 s, and launchers kill 30 s after Ctrl-C or SIGTERM: ")
        assert message.endswith(
            f"`touch {tmp_path}/STOP`, or have SIGUSR1 sent early, as sbatch --signal=USR1@420 does"
        )
