"""Which run may write a folder, and from which checkpoint it resumes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.runs.claim import checkpoint_to_resume, claim_run_folder, lock_run_folder
from pretraining.runs.run_folder import METRICS_NAME, quarantine_unusable
from tests.conftest import PROJECT_DIR
from tests.unit.runs.test_run_folder import cut, make_checkpoint


def test_a_run_that_lost_all_its_checkpoints_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 10)
    (checkpoint / "complete.json").rename(tmp_path / "complete.json")
    assert checkpoint_to_resume(tmp_path, "auto") is None, "killed in its first save: there is nothing to lose"
    (tmp_path / "complete.json").rename(checkpoint / "complete.json")
    cut(checkpoint / "trainer_state.json")
    with pytest.raises(
        UserError, match=r"all checkpoints in .* are damaged .*trainer_state.json is damaged: it has 10"
    ):
        checkpoint_to_resume(tmp_path, "auto")
    quarantine_unusable(tmp_path, step=0)
    with pytest.raises(UserError, match=r"are damaged \(checkpoint-10.incomplete: trainer_state.json is damaged"):
        checkpoint_to_resume(tmp_path, "auto")


def test_a_finished_run_without_checkpoints_does_not_begin_again_by_itself(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="model/ is that of a finished run"):
        checkpoint_to_resume(tmp_path, "auto")


def test_one_run_at_a_time_writes_a_folder(tmp_path: Path) -> None:
    words = "import sys, time; from pathlib import Path; from pretraining.runs.claim import lock_run_folder as lock\n"
    words += "lock(Path(sys.argv[1])); print('mine', flush=True); time.sleep(60)"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    with subprocess.Popen([sys.executable, "-c", words, tmp_path], stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mine\n"
        with pytest.raises(
            UserError, match=rf"another run \(process {other.pid} on {socket.gethostname()}\) is writing there"
        ):
            lock_run_folder(tmp_path, wait_seconds=0.1)
        other.kill()
    lock_run_folder(tmp_path, wait_seconds=0.1)


def test_another_run_is_not_written_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = make_checkpoint(tmp_path / "mine", 10)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "tokenizer").mkdir()
    (theirs / "run.lock").touch()
    claim_run_folder(theirs, checkpoint, resume=str(checkpoint))  # killed before it had a record
    (theirs / "run.json").touch()
    claim_run_folder(theirs, None, resume="never")  # it never began
    (theirs / METRICS_NAME).touch()
    with pytest.raises(UserError, match="already contains a run"):
        claim_run_folder(theirs, checkpoint, resume=str(checkpoint))
    with pytest.raises(UserError, match="already contains a run"):
        claim_run_folder(theirs, None, resume="never")
    with caplog.at_level("INFO", logger="pretraining"):
        claim_run_folder(theirs, None, resume="auto")  # it has no checkpoint, and begins again
    assert caplog.messages == [f"no complete checkpoint in {theirs} yet: starts from the beginning"]
    claim_run_folder(tmp_path / "mine", checkpoint, resume="auto")
