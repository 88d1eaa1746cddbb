"""A run in which one process hangs ends by itself, and shows where all of them stood."""

from pathlib import Path

import pytest

from tests.conftest import assert_one_error
from tests.programs.launching import try_to_train

pytestmark = pytest.mark.launch


def test_a_hang_ends_with_the_stacks_of_all_processes(sample_store: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    # 6 s: no step takes a thirtieth of that, and on a busy machine none takes that.
    flags = ["--hang_timeout_minutes", 0.1, "--save_strategy", "no", "--eval_strategy", "no"]
    env = {"AT": "step:3", "DO": "sleep_for_ever()", "BY_RANK": "1", "DUMP_SECONDS": "2"}
    done = try_to_train(
        "2 ranks", sample_store, run_dir, *flags, script="tests/faults/drivers/interrupted_run.py", env=env
    )
    place = f"stack traces of all processes are in {run_dir}/stacks"
    assert_one_error(done, "--hang_timeout_minutes 0.1: no progress for that long", place)
    waits, hangs = ((run_dir / f"stacks/rank-{rank}.txt").read_text() for rank in (0, 1))
    assert "in sleep_for_ever" in hangs
    assert "in sleep_for_ever" not in waits
    assert "in _run_epoch" in waits
    assert "deepspeed/runtime/zero" in waits, "it waits for weights of the other"
