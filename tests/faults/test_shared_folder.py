"""All processes of a run must see the same run folder: it is found before anything is trained."""

import socket
from pathlib import Path

import pytest

from pretraining.runs.run_folder import complete_checkpoints
from tests.conftest import PROJECT_DIR, assert_one_error
from tests.programs.launching import try_to_train

pytestmark = pytest.mark.launch

SCRIPT = "tests/faults/drivers/split_folder_run.py"
DS_CONFIG = ["--deepspeed", PROJECT_DIR / "ds_config.json"]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for rank in "01":
        (tmp_path / rank).mkdir()
    return tmp_path


@pytest.mark.guarantee("A run folder that processes do not share is an error at the start.")
def test_a_run_folder_that_is_another_for_each_process_is_an_error_at_the_start(
    training_store: Path, folders: Path
) -> None:
    done = try_to_train(
        "2 ranks", training_store, Path("run"), *DS_CONFIG, script=SCRIPT, env={"FOLDERS": str(folders)}
    )
    assert done.returncode == 2
    host = socket.gethostname()
    places = f"({folders}/1/run on {host}, not {folders}/0/run on {host})"
    problem = f"--output_dir run: is not the same folder on {host}: process 1 does not see what process 0 writes there "
    assert_one_error(done, problem, places)
    assert not (folders / "0/run/run.json").exists()
    assert not (folders / "0/run/run.token").exists()


def test_a_run_folder_that_is_seen_late_is_shared(training_store: Path, folders: Path) -> None:
    env = {"FOLDERS": str(folders), "LATE": "1"}
    flags = ["--max_steps", 2, "--save_steps", 2, "--eval_strategy", "no", "--export", "false"]
    done = try_to_train("2 ranks", training_store, Path("run"), *DS_CONFIG, *flags, script=SCRIPT, env=env)
    assert done.returncode == 0, done.output[-3000:]
    assert [path.name for path in complete_checkpoints(folders / "0/run")] == ["checkpoint-2"]
    assert not (folders / "0/run/run.token").exists()
