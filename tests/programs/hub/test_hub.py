"""Block stores go to the Hub by the real client, whatever breaks, and the real `datasets` reads them there."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import HANG_SECONDS, PROJECT_DIR, Done, assert_nowhere, assert_one_error, python, run_fine
from tests.fakes.hub import LocalHub, running_hub
from tests.fakes.hub.repositories import Repository, git_oid
from tests.fakes.hub.server import ALICE, ALICE_READS, CUT, DROP, FLIP, HOLD, LOSE
from tests.programs.launching import run_forked, run_forked_fine

pytestmark = pytest.mark.launch

NAME = "alice/blocks"
# Left at once: what pyarrow reads a stream with may still run and abort a process that ends.
LOAD = """
import hashlib, os, sys
from datasets import load_dataset
for split in ("train", "validation", "test"):
    whole = load_dataset(sys.argv[1], split=split)
    streamed = load_dataset(sys.argv[1], split=split, streaming=True)
    assert [row["input_ids"] for row in streamed] == [row["input_ids"] for row in whole]
    print(hashlib.sha256(str(list(whole)).encode()).hexdigest(), flush=True)
os._exit(0)
"""
WITHOUT_WAITING = PROJECT_DIR / "tests/programs/hub/impatient_run.py"


@pytest.fixture(scope="module")
def local_rows(sample_store: Path) -> str:
    """A digest per split of the rows of the store on this machine."""
    shards = [sample_store / f"data/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")]
    rows = [str(pq.read_table(shard).to_pylist()) for shard in shards]
    return "".join(f"{hashlib.sha256(text.encode()).hexdigest()}\n" for text in rows)


def push_command(store: Path, *flags: object) -> list[object]:
    words = ["--block_length", 64, "--split", "90,5,5", "--output_dir", store, "--push_to_hub", NAME]
    return python("preprocess.py", *words, *flags)


def push_impatiently(store: Path, *flags: object, env: dict[str, str]) -> Done:
    """Push without waiting between the attempts."""
    interpreter, *words = push_command(store, *flags)
    return run_forked(interpreter, WITHOUT_WAITING, *words, env=env)


def on_the_hub(hub: LocalHub) -> Repository:
    return hub.storage.repositories["dataset", NAME]


def files_of(store: Path) -> dict[str, bytes]:
    return {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def assert_arrived(hub: LocalHub, store: Path) -> None:
    """The Hub has the files of the store, by the Hub's own hashes, and no others."""
    repository = on_the_hub(hub)
    tree = repository.trees[repository.head]
    contents = files_of(store)
    assert set(tree) == set(contents)
    for path, entry in tree.items():
        content = contents[path]
        expected = hashlib.sha256(content).hexdigest() if entry.sha256 else git_oid(content)
        assert (entry.etag, entry.num_bytes) == (expected, len(content)), path
        assert bool(entry.sha256) == path.endswith(".parquet")


# Xet is long: what it stores arrives in test_after_a_kill_chunks_are_not_stored_twice as well.
@pytest.mark.parametrize("xet", [False, pytest.param(True, marks=pytest.mark.long)], ids=["lfs", "xet"])
@pytest.mark.guarantee("A block store on the Hub is private, complete and loads without code of this suite.")
def test_a_pushed_store_is_private_whole_and_loads_without_our_code(
    xet: bool, hub: LocalHub, sample_store: Path, local_rows: str, tmp_path: Path
) -> None:
    store = tmp_path / "blocks"
    shutil.copytree(sample_store, store)
    env = hub.env(tmp_path / "machine", ALICE, xet=xet)
    done = run_fine(*push_command(store, "--license", "cc-by-4.0"), env=env)
    commit = on_the_hub(hub).head
    assert on_the_hub(hub).private
    assert "pushing to the private data set" in done.stderr
    assert f'load_dataset("{NAME}", revision="{commit}")' in done.stderr
    assert f"pretrain.py --dataset {NAME} --dataset_revision {commit}" in done.stderr
    assert (store / "README.md").read_text().startswith("---\nlicense: cc-by-4.0\n")
    assert_arrived(hub, store)
    assert bool(hub.asked("xet_token")) == xet
    assert bool(hub.asked("put")) != xet

    hub.log.clear()
    again = run_forked_fine(*push_command(store), env=env)
    assert "nothing to upload" in again.stderr
    assert {asked.method for asked in hub.log} == {"GET", "POST"}
    assert {asked.route for asked in hub.log} == {"create", "info", "tree"}
    assert_nowhere(ALICE, Done(0, done.output, again.output), store, tmp_path / "machine")

    reader = hub.env(tmp_path / "reader", ALICE, xet=xet)
    assert run_fine(sys.executable, "-c", LOAD, NAME, env=reader).stdout == local_rows


@pytest.mark.parametrize(
    ("xet", "rounds"),
    [
        (False, [(429, 503, 500, DROP)]),
        pytest.param(False, [(429,), (503,), (500,), (DROP,)], marks=pytest.mark.long),
        pytest.param(True, [(503,), (DROP,)], marks=pytest.mark.long),
    ],
    ids=["lfs", "lfs-each-everywhere", "xet"],
)
@pytest.mark.guarantee("An upload to the Hub arrives with the same bytes after any error.")
def test_an_upload_survives_what_passes(
    xet: bool, rounds: list[tuple[int | str, ...]], sample_store: Path, tmp_path: Path
) -> None:
    """In each push every route fails once; long is that it does so in each way."""
    routes = ["create", "info", "tree", "preupload", "commit", *(["xet_token"] if xet else ["batch", "put", "verify"])]
    for faults in rounds:
        with running_hub() as hub:
            hub.faults = {route: [fault] for route, fault in zip(routes, cycle(faults), strict=False)}
            done = push_impatiently(sample_store, env=hub.env(tmp_path / str(faults), ALICE, xet=xet))
            assert "checked: the Hub has all" in done.stderr, done.output
            assert hub.faults == {route: [] for route in routes}
            assert_arrived(hub, sample_store)


def test_a_commit_whose_answer_is_lost_is_found_done(hub: LocalHub, sample_store: Path, tmp_path: Path) -> None:
    hub.faults = {"commit": [LOSE]}
    run_forked_fine(*push_command(sample_store), env=hub.env(tmp_path / "machine", ALICE))
    assert len(on_the_hub(hub).trees) == 3  # the first commit of every repository, and ours
    assert_arrived(hub, sample_store)


@pytest.mark.guarantee("After a kill, only what is missing is sent to the Hub.")
def test_after_a_kill_only_what_is_missing_is_sent(
    hub: LocalHub, sample_store: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("killed", 1)
    hub.faults = {"put": [0, HOLD, HOLD], "part": [HOLD, HOLD]}
    push_and_kill(hub, sample_store, tmp_path, when=lambda: len(hub.asked("put")) == 3 and bool(hub.asked("verify")))
    (arrived,) = [asked.path for asked in hub.asked("verify")]
    assert not hub.asked("commit")
    hub.stop_holding()
    hub.log.clear()
    run_forked_fine(*push_command(sample_store), env=hub.env(tmp_path / "machine", ALICE))
    assert_arrived(hub, sample_store)
    sent = {Path(asked.path).name for asked in hub.asked("put")}
    assert len(sent) == 2
    assert Path(arrived).name not in sent


def test_what_is_checked_is_the_commit_that_is_printed(hub: LocalHub, sample_store: Path, tmp_path: Path) -> None:
    """Somebody may push in between: each check of the files names the commit, after it was asked for."""
    done = run_forked_fine(*push_command(sample_store), env=hub.env(tmp_path / "machine", ALICE))
    commit = on_the_hub(hub).head
    assert f"at commit {commit}" in done.stderr
    after = hub.log[[asked.route for asked in hub.log].index("commit") :]
    trees = [asked.path for asked in after if asked.route == "tree"]
    assert trees
    assert all(f"/tree/{commit}" in path for path in trees)
    assert "info" in [asked.route for asked in after[: [asked.route for asked in after].index("tree")]]


def test_after_a_kill_chunks_are_not_stored_twice(
    hub: LocalHub, sample_store: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("killed", 1)
    hub.faults = {"commit": [HOLD]}
    push_and_kill(hub, sample_store, tmp_path, when=lambda: bool(hub.asked("commit")), xet=True)
    stored_bytes = hub.xet.num_bytes
    assert stored_bytes > 0
    assert len(on_the_hub(hub).trees) == 1
    hub.stop_holding()
    run_forked_fine(*push_command(sample_store), env=hub.env(tmp_path / "machine", ALICE, xet=True))
    assert_arrived(hub, sample_store)
    assert hub.xet.num_bytes == stored_bytes


def push_and_kill(hub: LocalHub, store: Path, tmp_path: Path, *, when: Callable[[], bool], xet: bool = False) -> None:
    env = {**os.environ, **hub.env(tmp_path / "machine", ALICE, xet=xet)}
    command = [str(word) for word in push_command(store)]
    process = subprocess.Popen(command, cwd=PROJECT_DIR, env=env, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + HANG_SECONDS
    while not when():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_data_set_with_a_manifest_is_whole_at_every_commit(hub: LocalHub, sample_store: Path, tmp_path: Path) -> None:
    other = tmp_path / "without-validation"
    run_forked_fine(*python("preprocess.py", "--block_length", 128, "--split", "1,0,1", "--output_dir", other))
    env = hub.env(tmp_path / "machine", ALICE)
    run_forked_fine(*push_command(sample_store), env=env)
    run_forked_fine(*push_command(other, "--block_length", 128, "--split", "1,0,1"), env=env)
    assert_arrived(hub, other)
    trees = list(on_the_hub(hub).trees.values())
    assert len(trees) == 1 + 2 + 2
    assert [set(tree) for tree in trees if "manifest.json" in tree] == [
        set(files_of(sample_store)),
        set(files_of(other)),
    ]


@pytest.mark.parametrize(
    ("route", "fault"),
    [
        ("put", FLIP),
        pytest.param("put", CUT, marks=pytest.mark.long),
        pytest.param("commit", FLIP, marks=pytest.mark.long),
    ],
    ids=["flipped", "cut", "small-files"],
)
def test_other_bytes_than_were_sent_are_found_and_mended(
    route: str, fault: str, hub: LocalHub, sample_store: Path, tmp_path: Path
) -> None:
    hub.faults = {route: [fault]}
    done = run_forked(*push_command(sample_store), env=hub.env(tmp_path / "machine", ALICE))
    assert_one_error(done, f"--push_to_hub {NAME}", "files arrived with other bytes", "run the same command again")
    assert ("data/" in done.errors[0] or "documents/" in done.errors[0]) == (route == "put")
    assert ("tokenizer/tokenizer.json" in done.errors[0]) == (route == "commit")
    run_forked_fine(*push_command(sample_store), env=hub.env(tmp_path / "machine", ALICE))
    assert_arrived(hub, sample_store)


def test_a_push_that_the_hub_refuses_is_one_line(hub: LocalHub, sample_store: Path, tmp_path: Path) -> None:
    public = hub.storage.create("dataset", "bob/public", private=False)
    hub.storage.create("dataset", "bob/private", private=True)
    on_the_way = f"the block store is finished in {sample_store}, run the same command again to resume the upload"
    refusals: list[tuple[str | None, list[object], list[str]]] = [
        (None, [], [f"--push_to_hub {NAME}: no Hub token was found", "hf auth login"]),
        ("hf_wrong_secret", [], ["401 Invalid credentials", "hf auth login", on_the_way]),
        (ALICE_READS, [], ["403 You don't have the rights", "a token with write access", on_the_way]),
        (ALICE, ["--push_to_hub", "bob/public"], ["403", "your own name", on_the_way]),
        (ALICE, ["--push_to_hub", "bob/private"], ["403", "your own name", on_the_way]),
        (ALICE, ["--push_to_hub", "nobody"], ["--push_to_hub nobody: is not a dataset", "USER/NAME"]),
        (ALICE, ["--license", "my own"], ["--license my own: is not a license of the Hub"]),
    ]

    for number, (token, flags, parts) in enumerate(refusals):
        done = run_forked(*push_command(sample_store, *flags), env=hub.env(tmp_path / str(number), token))
        assert_one_error(done, *parts)
        assert_nowhere(token or "hf_", done)
    assert len(public.trees) == 1
    assert ("dataset", NAME) not in hub.storage.repositories


@pytest.mark.long  # other refusals: test_a_push_that_the_hub_refuses_is_one_line
def test_no_network_no_quota_and_no_licence(hub: LocalHub, sample_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "blocks"
    shutil.copytree(sample_store, store)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = {"HF_ENDPOINT": f"http://127.0.0.1:{unused.getsockname()[1]}"}
        done = run_forked(*push_command(sample_store), env=hub.env(tmp_path / "a", ALICE) | nowhere)
    assert_one_error(done, "Connection refused", "check the network", "run the same command again")
    hub.faults = {"create": [429] * 99}
    debugged = push_impatiently(sample_store, "--debug", env=hub.env(tmp_path / "b", ALICE))
    assert debugged.returncode != 0
    assert "Traceback" in debugged.stderr
    assert "UserError: --push_to_hub alice/blocks: 429 ordered 429; wait until your quota is renewed" in debugged.stderr
    hub.faults = {}
    done = run_forked(*push_command(store, "--license", "mine"), env=hub.env(tmp_path / "c", ALICE))
    assert_one_error(done, '"license" must be one of')
    assert_nowhere(ALICE, debugged, tmp_path)


def test_what_is_published_is_said(hub: LocalHub, sample_store: Path, tmp_path: Path) -> None:
    env = hub.env(tmp_path / "machine", ALICE)
    done = run_forked_fine(*push_command(sample_store, "--hub_private", "false"), env=env)
    assert "pushing to the public data set" in done.stderr
    assert not on_the_hub(hub).private
    done = run_forked_fine(*push_command(sample_store), env=env)
    assert f"warning: --hub_private true: {NAME} already exists and stays public" in done.stderr
