"""Training takes its blocks from the Hub: one download a machine, one commit, and one line when it cannot."""

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from pretraining.data.hub import download as hub_download
from pretraining.errors import UserError
from pretraining.runs.record_file import read_run_record
from pretraining.system.files import sha256_of
from pretraining.system.launchers import SUPERVISOR_VARIABLE, meeting_dir
from pretraining.system.processes import descendants
from pretraining.training.callbacks.hub_push import REPORT_NAMES
from tests.conftest import (
    PROJECT_DIR,
    TINY_RUN,
    assert_nowhere,
    assert_one_error,
    python,
    run_fine,
    wait_until,
)
from tests.fakes.hub import LocalHub
from tests.fakes.hub.server import ALICE, BOB, DROP, HOLD
from tests.programs.launching import (
    figures,
    launcher,
    preloaded_for,
    records,
    run_forked,
    run_forked_fine,
    training_flags,
    try_to_train,
)

pytestmark = pytest.mark.launch

NAME = "alice/blocks"
FIND = [sys.executable, PROJECT_DIR / "tests/programs/hub/find_run.py"]
NUM_STEPS = 5


# Long: of one process test_pushes_fail_and_end_no_training_and_are_not_lost trains on a revision as well, and two
# processes share a download in test_a_download_is_checked_once_and_a_wrong_file_is_named.
@pytest.mark.long
def test_training_takes_a_revision_from_the_hub_once_for_all_processes(
    hub: LocalHub, sample_store: Path, tmp_path: Path
) -> None:
    commit = served_commit(hub, sample_store)
    flags = [*TINY_RUN, "--global_batch_tokens", 512, "--max_steps", 2, "--per_device_train_batch_size", 2]
    command = [*launcher("deepspeed"), PROJECT_DIR / "pretrain.py", *flags, "--output_dir", tmp_path / "run"]
    command += ["--dataset", NAME, "--dataset_revision", commit, "--license", "cc-by-4.0", "--save_steps", 1]
    command += ["--push_to_hub", "--hub_model_id", "alice/model", "--hub_strategy", "every_save"]
    command += ["--hub_private_repo", "false"]
    done = run_fine(*command, env=hub.env(tmp_path / "machine", ALICE, xet=True) | {"TMPDIR": str(tmp_path)})
    assert f"data set: {NAME} of the Hub at commit {commit}" in done.output
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["arguments"]["dataset"], record["arguments"]["dataset_commits"]) == ([NAME], [commit])
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) >= 2
    assert f"pushing to the public model {hub.url}/alice/model" in done.stderr
    assert_holds_run(hub, tmp_path / "run")
    assert "model of step 2" in (tmp_path / "run/report.html").read_text(), "its last push too"
    card = ModelCard(hub.read("model", "alice/model", "README.md").decode())
    assert (card.data.license, card.data.datasets) == ("cc-by-4.0", [NAME])
    assert {result.dataset_revision for result in card.data.eval_results} == {commit}
    sent = [asked.path.rpartition(commit + "/")[2] for asked in hub.asked("resolve") if asked.method == "GET"]
    shards = [f"data/{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")]
    assert sorted(path for path in sent if path.startswith("data/")) == shards
    assert not any(path.startswith(("skipped.jsonl", "README.md")) for path in sent)
    assert not list(tmp_path.glob("pretraining-*")), "what the processes left each other is removed"
    assert_nowhere(ALICE, done, tmp_path)


def test_a_process_whose_first_one_never_begins_does_not_wait_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_download, "START_SECONDS", 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="the first process of this machine does not download it"):
        hub_download.download_store(NAME, revision=None)


def test_what_another_user_left_in_the_temporary_folder_is_not_believed(
    sample_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They can guess its name, which is the launcher's number and start."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(hub_download, "_download", lambda *_: sample_store)
    monkeypatch.setenv("RANK", "0")
    folder = meeting_dir()
    note = folder / hashlib.sha256(f"{NAME}@None".encode()).hexdigest()[:16]
    note.write_text("/elsewhere")
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
    else:
        folder.chmod(0o777)
    with pytest.raises(UserError, match=f"{folder}: is not a folder that only this user can open"):
        hub_download.download_store(NAME, revision=None)
    assert [path.read_text() for path in folder.iterdir()] == ["/elsewhere"]
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path)
    with pytest.raises(UserError, match=f"{folder}: is not a folder"):
        hub_download.download_store(NAME, revision=None)
    assert list(tmp_path.iterdir()) == [folder]
    folder.unlink()
    monkeypatch.setenv(f"{hub_download.STORE_VARIABLE}_{note.name}", "")
    monkeypatch.delenv(f"{hub_download.STORE_VARIABLE}_{note.name}")  # and again at the end of the test
    assert hub_download.download_store(NAME, revision=None) == sample_store
    assert list(tmp_path.iterdir()) == []


def test_a_download_is_checked_once_and_a_wrong_file_is_named(
    hub: LocalHub, sample_store: Path, tmp_path: Path
) -> None:
    hub.storage.serve_folder("dataset", NAME, sample_store, private=True)
    env = hub.env(tmp_path / "machine", ALICE)
    fresh = env | {"PYTHONPATH": str(PROJECT_DIR)}
    with ThreadPoolExecutor() as threads:
        folders = {done.stdout.split()[0] for done in threads.map(lambda _: run_fine(*FIND, NAME, env=fresh), range(2))}
    assert len(folders) == 1
    (shard,) = Path(folders.pop()).glob("data/train-*")
    assert run_forked_fine(*FIND, NAME, env=env).stdout.split()[1:] == ["0", "hashed"]
    blob, content = shard.resolve(), shard.read_bytes()
    blob.write_bytes(content[:-1] + b"?")
    done = run_forked(*FIND, NAME, env=env)
    assert_one_error(
        done,
        f"--dataset {NAME}: {shard} has the SHA-256 {sha256_of(shard)}, the manifest has "
        f"{hashlib.sha256(content).hexdigest()}; delete {blob} and run the same command again to download it",
    )
    blob.unlink()
    assert run_forked_fine(*FIND, NAME, env=env).stdout.split()[1:] == ["4", "hashed"]
    assert shard.read_bytes() == content

    damaged = tmp_path / "damaged"
    shutil.copytree(sample_store, damaged)
    (damaged / "data" / shard.name).write_bytes(content[:-1] + b"?")
    hub.storage.serve_folder("dataset", "alice/damaged", damaged, private=True)
    done = run_forked(*FIND, "alice/damaged", env=env)
    assert_one_error(
        done, f"{shard.name} has the SHA-256 {sha256_of(damaged / 'data' / shard.name)}", "the Hub has the same bytes"
    )


@pytest.mark.parametrize(
    "ranks",
    [{}, pytest.param({"RANK": "0", "WORLD_SIZE": "1"}, marks=pytest.mark.long)],
    ids=["alone", "launcher"],
)
@pytest.mark.guarantee("A supervised run trains on one commit of a branch that moves.")
def test_attempts_of_a_supervised_run_use_one_commit(
    ranks: dict[str, str], hub: LocalHub, sample_store: Path, tmp_path: Path
) -> None:
    repository = hub.storage.serve_folder("dataset", NAME, sample_store, private=True)
    first = repository.head
    env = hub.env(tmp_path / "machine", ALICE) | ranks

    def commit_of(attempt: dict[str, str]) -> str:
        done = run_forked_fine(*FIND, NAME, env=env | attempt)
        return Path(done.stdout.split()[0]).name

    supervised = {SUPERVISOR_VARIABLE: str(tmp_path)}
    assert commit_of(supervised) == first
    card = {path: entry for path, entry in repository.trees[first].items() if path != "README.md"}
    second = repository.commit(card, "another card")
    assert commit_of(supervised) == first
    assert commit_of({SUPERVISOR_VARIABLE: str(tmp_path / "elsewhere")}) == second


def test_a_data_set_that_training_cannot_have_is_one_line(hub: LocalHub, sample_store: Path, tmp_path: Path) -> None:
    hub.storage.serve_folder("dataset", NAME, sample_store, private=True)
    hub.storage.create("dataset", "alice/other", private=True)
    alone = "nor a data set of the Hub that you may read"
    refusals: list[tuple[str | None, list[object], list[str]]] = [
        (ALICE, ["--dataset", "alice/nothing"], ["--dataset alice/nothing: neither a local folder", alone]),
        (BOB, ["--dataset", NAME], [f"--dataset {NAME}", alone, "404"]),
        (None, ["--dataset", NAME], [f"--dataset {NAME}", alone, "hf auth login"]),
        (ALICE, ["--dataset", NAME, "--dataset_revision", "v9"], ["--dataset_revision v9", "no such branch"]),
        (ALICE, ["--dataset", "alice/other"], ["--dataset alice/other: not a block store (manifest.json is missing)"]),
        (ALICE, ["--dataset", sample_store, "--dataset_revision", "v9"], ["--dataset_revision v9", "remove the flag"]),
    ]

    for number, (token, flags, parts) in enumerate(refusals):
        done = run_forked(*python("pretrain.py", *flags), env=hub.env(tmp_path / str(number), token))
        assert_one_error(done, *parts)
    assert not [asked for asked in hub.asked("resolve") if "data/" in asked.path]


@pytest.mark.guarantee("Pushes that fail end no training and are not lost.")
def test_pushes_fail_and_end_no_training_and_are_not_lost(
    hub: LocalHub, sample_store: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Killed while one hangs; forbidden at the end; the same command pushes, without training again."""
    record_property("killed", 1)
    commit, run_dir = served_commit(hub, sample_store), tmp_path / "run"
    flags = ["--hub_model_id", "alice/model", "--hub_strategy", "every_save", "--save_steps", 1]  # pushes by itself
    flags += ["--max_steps", NUM_STEPS, "--dataset_revision", commit]
    env = hub.env(tmp_path / "machine", ALICE, xet=True)
    hub.faults = {"commit": [HOLD] * 100}
    kill_when_trained(hub, NAME, run_dir, *flags, env=env)
    before = figures(run_dir)

    hub.stop_holding()
    hub.faults = {"commit": [503, DROP] + [403] * 100}
    words = [PROJECT_DIR / "pretrain.py", *training_flags(NAME, run_dir, *flags)]
    done = run_forked(sys.executable, PROJECT_DIR / "tests/programs/hub/impatient_run.py", *words, env=env)
    assert_one_error(done, "--push_to_hub", "could not be pushed (403", "rerun the command to push again")
    assert (run_dir / "model/model.safetensors").is_file()
    assert pushes(run_dir)[-1]["problem"].startswith("403")
    repository = hub.storage.repositories["model", "alice/model"]
    assert len(repository.trees) == 1

    hub.faults = {}
    done = try_to_train("fork", NAME, run_dir, *flags, env=env)
    assert done.returncode == 0, done.output[-3000:]
    assert figures(run_dir) == before
    assert (len(before), len(records(run_dir, "test_loss"))) == (NUM_STEPS, 1)
    assert f"pushing to the private model {hub.url}/alice/model" in done.stderr
    assert_holds_run(hub, run_dir)
    assert read_run_record(run_dir)["arguments"]["dataset_commits"] == [commit]
    assert f"pushed: {hub.url}/alice/model at commit {repository.head}: model of step {NUM_STEPS}" in done.stderr
    assert (pushes(run_dir)[-1]["step"], pushes(run_dir)[-1]["problem"]) == (NUM_STEPS, None)
    assert not (run_dir / "push").exists()
    assert_nowhere(ALICE, done, tmp_path)


def served_commit(hub: LocalHub, store: Path) -> str:
    """The commit of a block store on the Hub, after which everything was deleted."""
    repository = hub.storage.serve_folder("dataset", NAME, store, private=True)
    commit = repository.head
    repository.commit({}, "everything deleted")
    return commit


def pushes(run_dir: Path) -> list[dict]:
    return [event for event in records(run_dir, "event") if event["event"] == "push"]


def kill_when_trained(hub: LocalHub, *arguments: Any, env: dict[str, str]) -> None:
    """A run in one process that is killed when it is trained, while its first push hangs."""
    run_dir = arguments[1]
    last = run_dir / f"checkpoint-{NUM_STEPS}/complete.json"
    server = preloaded_for(env)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(try_to_train, "fork", *arguments, env=env)
        wait_until(lambda: last.exists() and hub.asked("commit") and not (run_dir / "checkpoint-1").exists())
        weights = run_dir / "push/step-1/model.safetensors"  # which rotation did not delete
        assert load_file(weights).keys() == load_file(last.with_name("model.safetensors")).keys()
        for process in descendants(server.pid):
            os.kill(process.pid, signal.SIGKILL)
        assert running.result().returncode == -signal.SIGKILL


def assert_holds_run(hub: LocalHub, run_dir: Path) -> None:
    """The Hub has the exported model of a run with the same bytes, its card and its report."""
    repository = hub.storage.repositories["model", "alice/model"]
    tree = set(repository.trees[repository.head])
    expected = {path.name: path for path in (run_dir / "model").iterdir()}
    assert tree - set(REPORT_NAMES) == set(expected) - set(REPORT_NAMES)  # the card has its curves beside it
    for name, path in expected.items():
        assert name == "README.md" or hub.read("model", "alice/model", name) == path.read_bytes(), name
