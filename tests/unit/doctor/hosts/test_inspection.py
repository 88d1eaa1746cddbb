"""What a host reports of itself: the real program, with its questions from a pipe."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pretraining.doctor.hosts import inspection
from pretraining.doctor.hosts.ssh import MARK
from pretraining.system.files import sha256_of
from pretraining.system.machines.software import commit, versions_to_compare
from tests.conftest import PROJECT_DIR

TOKEN = "5eed" * 8
# But for how long it waits for a token that a network disk might show late.
PROGRAM = """
from pretraining.doctor.hosts import inspection
inspection.TOKEN_SECONDS = 0.2
inspection.main()
"""


@pytest.fixture
def program(tmp_path: Path) -> subprocess.Popen:
    words = [sys.executable, "-c", PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=PROJECT_DIR, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


def ask(program: subprocess.Popen, question: dict) -> dict:
    program.stdin.write(json.dumps(question) + "\n")
    program.stdin.flush()
    line = program.stdout.readline()
    assert line.startswith(MARK)
    return json.loads(line.removeprefix(MARK))


def test_it_reports_itself_shows_a_token_and_removes_it(program, tmp_path: Path, sample_store: Path) -> None:
    question = {"token": TOKEN, "run_folder": str(tmp_path / "runs/new"), "datasets": [str(sample_store), "/nowhere"]}
    found = ask(program, question)
    assert found["versions"] == versions_to_compare(), "as a run compares them"
    assert found["commit"] == commit()
    assert found["num_cpu_cores"] >= 1
    assert found["datasets"][str(sample_store)]["sha256"] == sha256_of(sample_store / "manifest.json")
    assert "problem" not in found["datasets"][str(sample_store)]
    assert found["datasets"]["/nowhere"]["problem"].startswith("manifest.json is missing")
    assert found["run_folder"] == {"folder": str(tmp_path), "problem": ""}
    token = tmp_path / f".doctor-{TOKEN}"
    assert token.read_text() == TOKEN

    missing = str(tmp_path / ".doctor-other")
    view = {"tokens": [str(token), missing], "addresses": ["127.0.0.1"], "port": found["port"], "token": TOKEN}
    assert ask(program, view) == {"seen": [str(token)], "reached": ["127.0.0.1"]}
    program.stdin.close()
    assert program.wait(60) == 0
    assert not token.exists()


def test_it_ends_and_leaves_nothing_when_the_doctor_is_gone(program, tmp_path: Path) -> None:
    ask(program, {"token": TOKEN, "run_folder": str(tmp_path), "datasets": []})
    program.stdin.close()
    assert program.wait(60) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_host_answers_at_addresses_of_both_kinds() -> None:
    with inspection.listener(TOKEN) as port:
        assert inspection.addresses_reached(["127.0.0.1", "::1"], port, TOKEN) == ["127.0.0.1", "::1"]


def test_another_machine_at_the_address_is_not_taken_for_the_host() -> None:
    with inspection.listener(TOKEN) as port:
        assert inspection.addresses_reached(["127.0.0.1"], port, TOKEN) == ["127.0.0.1"]
        assert inspection.addresses_reached(["127.0.0.1"], port, "0" * 32) == []
    assert inspection.addresses_reached(["127.0.0.1"], port, TOKEN) == []
    assert inspection.addresses_reached([], port, TOKEN) == []


def test_a_shard_of_another_size_is_found(tmp_path: Path) -> None:
    shard = {"path": "data/train-0.parquet", "num_bytes": 3}
    (tmp_path / "manifest.json").write_text(json.dumps({"documents": [], "splits": {"train": {"shards": [shard]}}}))
    missing = inspection.describe_store(tmp_path)["problem"]
    assert missing == "1 of 1 files are missing or have another size, e.g. data/train-0.parquet"
    (tmp_path / "data").mkdir()
    (tmp_path / shard["path"]).write_text("abc")
    assert "problem" not in inspection.describe_store(tmp_path)
    (tmp_path / shard["path"]).write_text("ab")
    assert inspection.describe_store(tmp_path)["problem"] == missing
    (tmp_path / "manifest.json").write_text("[]")
    assert inspection.describe_store(tmp_path)["problem"] == "manifest.json is damaged"


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    with inspection.token_file(Path("/proc/run"), TOKEN) as found:
        assert found["folder"] == "/proc"
        assert found["problem"]
