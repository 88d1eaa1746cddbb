"""Training takes its blocks from the Hub: one download a machine, one commit, and one line when it cannot."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pretraining.cli.errors import UserError
from pretraining.corpus import hub_download
from tests.conftest import PROJECT_DIR, TINY_RUN, Done, assert_nowhere, assert_one_error, python, run, run_fine
from tests.hub import LocalHub, running_hub
from tests.hub.server import ALICE, BOB, USERS
from tests.launch.launching import figures, launcher, records, try_to_train

pytestmark = pytest.mark.launch

NAME = "alice/blocks"


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with running_hub() as hub:
        yield hub


def test_training_takes_a_revision_from_the_hub_once_for_all_processes(
    hub: LocalHub, sample_store: Path, tmp_path: Path
) -> None:
    repository = hub.storage.serve_folder("dataset", NAME, sample_store, private=True)
    commit = repository.head
    repository.commit({}, "everything deleted")
    flags = [*TINY_RUN, "--global_batch_tokens", 512, "--max_steps", 2, "--per_device_train_batch_size", 2]
    command = [*launcher("deepspeed"), PROJECT_DIR / "pretrain.py", *flags, "--output_dir", tmp_path / "run"]
    command += ["--dataset", NAME, "--dataset_revision", commit]
    done = run_fine(*command, env=hub.env(tmp_path / "machine", ALICE) | {"TMPDIR": str(tmp_path)})
    assert f"data set: {NAME} of the Hub at commit {commit}" in done.output
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["arguments"]["dataset"], record["arguments"]["dataset_commits"]) == ([NAME], [commit])
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) >= 2
    sent = [asked.path.rpartition(commit + "/")[2] for asked in hub.asked("resolve") if asked.method == "GET"]
    shards = [f"data/{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")]
    assert sorted(path for path in sent if path.startswith("data/")) == shards
    assert not any(path.startswith(("skipped.jsonl", "README.md")) for path in sent)
    assert_nowhere(ALICE, done, tmp_path)


def test_a_process_whose_first_one_never_begins_does_not_wait_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_download, "BEGIN_SECONDS", 0.0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="the first process of this machine does not download it"):
        hub_download.download_store(NAME, revision=None)


def test_a_data_set_that_training_cannot_have_is_one_line(hub: LocalHub, sample_store: Path, tmp_path: Path) -> None:
    hub.storage.serve_folder("dataset", NAME, sample_store, private=True)
    hub.storage.create("dataset", "alice/other", private=True)
    alone = "no data set of the Hub that you may read"
    refusals: list[tuple[str | None, list[object], list[str]]] = [
        (ALICE, ["--dataset", "alice/nothing"], ["--dataset alice/nothing: is no folder here", alone]),
        (BOB, ["--dataset", NAME], [f"--dataset {NAME}", alone, "404"]),
        (None, ["--dataset", NAME], [f"--dataset {NAME}", alone, "hf auth login"]),
        (ALICE, ["--dataset", NAME, "--dataset_revision", "v9"], ["--dataset_revision v9", "no such branch"]),
        (ALICE, ["--dataset", "alice/other"], ["--dataset alice/other: is no block store (manifest.json is missing)"]),
        (ALICE, ["--dataset", sample_store, "--dataset_revision", "v9"], ["--dataset_revision v9", "leave it out"]),
    ]

    def train(case: tuple[str | None, list[object], list[str]]) -> Done:
        token, flags, _ = case
        machine = tmp_path / str(refusals.index(case))
        return run(*python("pretrain.py", *flags), env=hub.env(machine, token))

    with ThreadPoolExecutor(4) as threads:
        for (_, _, parts), done in zip(refusals, threads.map(train, refusals), strict=True):
            assert_one_error(done, *parts)
    assert not [asked for asked in hub.asked("resolve") if "data/" in asked.path]


def test_a_hub_that_is_down_at_the_push_costs_nothing(hub: LocalHub, sample_store: Path, tmp_path: Path) -> None:
    """The training ends, the model is whole, the exit code tells, and the same command pushes without training."""
    run_dir = tmp_path / "run"
    flags = ["--push_to_hub", "--hub_model_id", "alice/model", "--max_steps", 2, "--save_steps", 1]
    env = hub.env(tmp_path / "machine", ALICE)
    hub.faults = {"commit": [503] * 100}
    done = try_to_train("python", sample_store, run_dir, *flags, env=env)
    assert_one_error(done, "--push_to_hub", "could not be pushed (503", "the same command pushes again")
    assert (run_dir / "model/model.safetensors").is_file()
    before = figures(run_dir)
    assert len(before) == 2

    hub.faults = {}
    done = try_to_train("python", sample_store, run_dir, *flags, env=env)
    assert done.returncode == 0, done.output[-3000:]
    assert f"pushed: {hub.url}/alice/model" in done.stderr
    assert figures(run_dir) == before
    assert len(records(run_dir, "test_loss")) == 1
    repository = hub.storage.readable("model", "alice/model", USERS[ALICE])
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(repository.trees[repository.head])
    assert_nowhere(ALICE, done, tmp_path)
