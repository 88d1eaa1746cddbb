"""Saves that fail, and files that are damaged afterwards: the run goes on, and resumes from what is whole."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pretraining.runs.checksums import read_complete
from pretraining.runs.run_folder import complete_checkpoints
from tests.conftest import assert_one_error, mounted_disk
from tests.programs.launching import events, figures, records, train, try_to_train
from tests.programs.shards import assert_equal_to_the_bit

pytestmark = pytest.mark.launch

LIMITED_DISK = "tests/faults/drivers/limited_disk.py"
FLAGS = ["--save_steps", 2, "--save_total_limit", 9, "--eval_strategy", "no"]


@pytest.fixture(scope="module")
def undisturbed(training_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    train("2 ranks", training_store, run_dir, *FLAGS)
    return run_dir


def weights(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "model/model.safetensors").read_bytes()).hexdigest()


def assert_same_run(run_dir: Path, other: Path) -> None:
    assert figures(run_dir) == figures(other)
    assert [record["step"] for record in records(run_dir)] == list(range(1, 7))
    assert weights(run_dir) == weights(other)


def steps_of(run_dir: Path) -> list[str]:
    return [folder.name for folder in complete_checkpoints(run_dir)]


@pytest.mark.guarantee("A failed save does not end the run.")
def test_saves_that_fail_on_one_process_leave_the_run_going(
    undisturbed: Path, training_store: Path, tmp_path: Path
) -> None:
    """The second process has no room; later the first one can write no byte.

    That is neither checkpoint nor record nor curve, nor a word to a log file; no record is lost.
    """
    run_dir = tmp_path / "run"
    env = {"LIMITED": json.dumps([[1, 2, 3, 1_000_000], [0, 4, 5, 100]])}
    done = train("2 ranks", training_store, run_dir, *FLAGS, script=LIMITED_DISK, env=env)
    assert f"warning: {run_dir}/checkpoint-2: checkpoint not saved" in done.stderr
    assert steps_of(run_dir) == ["checkpoint-6"]
    assert len(list(run_dir.glob("checkpoint-*"))) == 1, "half a checkpoint would keep the disk full"
    failed = [(event["event"], event["step"]) for event in events(run_dir, "save failed")]
    assert failed == [("save failed", 2), ("save failed", 4)]
    assert_same_run(run_dir, undisturbed)


# Of the second process: test_saves_that_fail_on_one_process_leave_the_run_going
@pytest.mark.long
def test_a_save_that_fails_on_the_first_process_leaves_the_run_going(
    undisturbed: Path, training_store: Path, tmp_path: Path
) -> None:
    env = {"LIMITED": json.dumps([[0, 4, 5, 1_000_000]])}
    done = train("2 ranks", training_store, tmp_path / "run", *FLAGS, script=LIMITED_DISK, env=env)
    assert f"warning: {tmp_path}/run/checkpoint-4: checkpoint not saved" in done.stderr
    assert steps_of(tmp_path / "run") == ["checkpoint-2", "checkpoint-6"]
    assert not (tmp_path / "run/checkpoint-4").exists(), "half a checkpoint would keep the disk full"
    (event,) = events(tmp_path / "run", "save failed", "warning")
    assert (event["event"], event["step"]) == ("save failed", 4)
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint of 9 MB, but not for two."""
    with mounted_disk(tmp_path / "disk", megabytes=76) as folder:
        yield folder


def test_there_must_be_room_for_a_save_before_it_starts(
    undisturbed: Path, training_store: Path, small_disk: Path
) -> None:
    """Room is found for the first checkpoint; the second finds none, and the run ends well all the same."""
    run_dir = small_disk / "run"
    done = train("2 ranks", training_store, run_dir, *FLAGS)
    assert re.search(r"checkpoint-4: checkpoint not saved \(it needs [\d.]+ MB, and \d+ MB are free\)", done.stderr)
    assert steps_of(run_dir) == ["checkpoint-2"]
    assert [event["step"] for event in events(run_dir, "save failed", "warning")] == [4, 6]
    assert_same_run(run_dir, undisturbed)


# test_saves_that_fail_on_one_process_leave_the_run_going
@pytest.mark.long
def test_a_run_folder_that_may_not_be_written_stops_no_training(
    undisturbed: Path, training_store: Path, tmp_path: Path
) -> None:
    """Root may write into a read-only folder; into an immutable one nobody may."""
    if subprocess.run(["chattr", "+i", str(tmp_path)], capture_output=True, check=False).returncode:
        pytest.skip("no immutable folders here")
    subprocess.run(["chattr", "-i", str(tmp_path)], check=True)
    run_dir = tmp_path / "run"
    env = {"LIMITED": json.dumps([[0, 4, 5, str(run_dir)]])}
    done = train("2 ranks", training_store, run_dir, *FLAGS, script=LIMITED_DISK, env=env)
    assert "checkpoint-4: checkpoint not saved (Operation not permitted)" in done.stderr
    assert steps_of(run_dir) == ["checkpoint-2", "checkpoint-6"]
    assert_same_run(run_dir, undisturbed)


def test_without_room_for_a_copy_the_same_is_saved_at_once(
    undisturbed: Path, training_store: Path, tmp_path: Path
) -> None:
    """To the bit, or what is saved would be weights of the next step; one process without room is enough for that.

    And whatever the first process sees of the others' files, none is left out.
    """
    train("2 ranks", training_store, tmp_path / "run", *FLAGS, script="tests/faults/drivers/network_disk.py")
    assert steps_of(tmp_path / "run") == steps_of(undisturbed)
    for name in steps_of(undisturbed):
        ours, theirs = tmp_path / "run" / name, undisturbed / name
        assert_equal_to_the_bit(ours, theirs)
        assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        listed = [[file["path"] for file in read_complete(folder)["files"]] for folder in (ours, theirs)]
        assert listed[0] == listed[1]
        assert "rng_state_1.pth" in listed[0]
        assert len(listed[0]) == len(set(listed[0])), "a file is recorded twice"


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.guarantee("Damaged checkpoints are detected by their hashes.")
def test_damaged_checkpoints_are_set_aside_and_the_run_goes_on_from_a_sound_one(
    undisturbed: Path, training_store: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("tried", 2)
    record_property("lost_steps", 4)  # of two checkpoints at once
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    flip_a_bit(next((run_dir / "checkpoint-6").rglob("zero_pp_rank_1*optim_states.pt")))
    shard = run_dir / "checkpoint-4/model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    done = try_to_train("2 ranks", training_store, run_dir, *FLAGS, "--resume", run_dir / "checkpoint-6")
    assert_one_error(done, "checkpoint-6: is damaged", "_optim_states.pt is damaged: its XXH3 is ")

    done = train("2 ranks", training_store, run_dir, *FLAGS)
    assert "checkpoint-6.incomplete" in done.stderr
    assert "checkpoint-4.incomplete" in done.stderr
    assert f"resuming from {run_dir}/checkpoint-2 instead" in done.stderr
    assert steps_of(run_dir) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert (run_dir / "checkpoint-6.incomplete/complete.json").is_file(), "nothing is deleted"
    assert_same_run(run_dir, undisturbed)


def test_a_checkpoint_that_another_run_saves_meanwhile_is_not_passed_over(
    undisturbed: Path, training_store: Path, tmp_path: Path
) -> None:
    run_dir, late = tmp_path / "run", tmp_path / "checkpoint-6"
    shutil.copytree(undisturbed, run_dir)
    (run_dir / "checkpoint-6").rename(late)
    script, env = "tests/faults/drivers/late_checkpoint.py", {"LATE": str(late)}
    done = try_to_train("2 ranks", training_store, run_dir, *FLAGS, script=script, env=env)
    assert_one_error(done, f"--output_dir {run_dir}: the folder changed during start-up", "run the same command again")
    assert steps_of(run_dir) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_an_allowed_change_takes_effect_where_the_run_goes_on(
    undisturbed: Path, training_store: Path, tmp_path: Path
) -> None:
    """A larger batch reads on in the same order; weight decay is that of the flags, not of the checkpoint."""
    run_dir = tmp_path / "run"
    changed = [*FLAGS, "--global_batch_tokens", 1024, "--weight_decay", 0.5, "--lr_scheduler_type", "constant"]
    changed += ["--resume", undisturbed / "checkpoint-4"]
    done = try_to_train("2 ranks", training_store, run_dir, *changed)
    assert done.returncode == 2
    assert [error.split(" differs")[0] for error in done.errors] == [
        "error: --resume: global_batch_tokens",
        "error: --resume: optimizer_settings.weight_decay",
    ]
    allowed = ["--allow_changed", "global_batch_tokens", "optimizer_settings", "schedule"]
    done = train("2 ranks", training_store, run_dir, *changed, *allowed)
    assert "optimizer_settings.weight_decay was 0.1, now it is 0.5" in done.stderr
    assert [record["tokens"] for record in records(run_dir)] == [512, 1024, 1536, 2048, 3072, 4096]
    state = json.loads((run_dir / "checkpoint-6/trainer_state.json").read_text())
    assert state["stateful_callbacks"]["AnomalyCallback"]["attributes"]["num_blocks"] == 4096 // 64
    assert figures(run_dir)[:4] == figures(undisturbed)[:4]
    assert figures(run_dir)[4] != figures(undisturbed)[4]
