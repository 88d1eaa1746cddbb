"""A run whose learning rate is constant until it goes down can be made longer, as if it had been so from the start."""

import json
from pathlib import Path

import pytest

from tests.conftest import assert_one_error
from tests.programs.launching import BLOCKS_PER_STEP, figures, records, train, try_to_train

pytestmark = pytest.mark.launch

WSD = ["--lr_scheduler_type", "wsd", "--decay_steps", 2, "--eval_strategy", "no", "--save_total_limit", 1]
WSD += ["--export", "false", "--per_device_train_batch_size", BLOCKS_PER_STEP]


@pytest.mark.guarantee("A wsd run that is extended equals one that was planned longer, bit by bit.")
def test_a_longer_run_from_the_stable_phase_is_one_that_was_planned_so(sample_store: Path, tmp_path: Path) -> None:
    short, longer, planned = (tmp_path / name for name in ("short", "longer", "planned"))
    done = train("1 rank", sample_store, short, *WSD)  # 6 steps
    kept = short / "checkpoint-4"
    assert f"to train longer: --max_steps N --output_dir ANOTHER --resume {kept}" in done.stderr
    assert sorted(path.name for path in short.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]

    more = ["--max_steps", 10, "--resume", kept]
    done = train("1 rank", sample_store, longer, *WSD, *more)
    assert "warning: the schedule changes from step 5 on: num_steps was 6, now it is 10" in done.stderr
    train("1 rank", sample_store, planned, *WSD, "--max_steps", 10, "--save_steps", 4)
    assert figures(longer) == figures(planned)
    assert [record["step"] for record in records(longer)] == list(range(1, 11))
    rates = [record["learning_rate"] for record in records(longer)]
    assert rates[:2] == [pytest.approx(5e-3), pytest.approx(1e-2)]
    assert rates[2:8] == [pytest.approx(1e-2)] * 6
    assert rates[9] == pytest.approx(1e-3)
    assert len(figures(short)) == 6, "the shorter run is as it was"

    from_the_end = ["--max_steps", 10, "--resume", short / "checkpoint-6"]
    done = try_to_train("1 rank", sample_store, tmp_path / "wrong", *WSD, *from_the_end)
    assert_one_error(done, "its learning rate at step 5 was", "resume from a checkpoint before that step")
    assert json.loads((longer / "run.json").read_text())["schedule"]["num_steps"] == 10
