"""The order of the callbacks."""

import pytest

from pretraining.training.build import ORDER

NAMES = [callback.__name__ for callback in ORDER]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        # It checks the engine and starts the clock.
        *(("RunStart", name) for name in NAMES[1:]),
        # What a rollback undoes must not be used before.
        *(("AnomalyCallback", name) for name in ("ExportCallback", "SampleCallback", "StopCallback", "MetricsLog")),
        # A stop cancels an evaluation that was asked for, and keeps it as pending.
        *((name, "StopCallback") for name in ("CheckpointRotation", "AnomalyCallback", "MetricsLog")),
        # It drops the records of steps that are repeated.
        ("MetricsLog", "TensorBoardResume"),
        # It waits for the last checkpoint.
        *(("CheckpointRotation", name) for name in ("HubPushCallback", "RunSummary")),
    ],
)
def test_a_callback_comes_after_what_it_depends_on(first: str, second: str) -> None:
    assert NAMES.index(first) < NAMES.index(second)


def test_the_step_timer_reads_the_clock_right_after_the_wait_for_the_gpu() -> None:
    assert NAMES[NAMES.index("AnomalyCallback") + 1] == "StepTimer"


def test_each_callback_has_one_position() -> None:
    assert len(set(NAMES)) == len(NAMES)
