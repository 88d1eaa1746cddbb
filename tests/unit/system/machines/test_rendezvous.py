"""Where the processes of several machines meet."""

import socket

import pytest

from pretraining.errors import UserError
from pretraining.system.launchers import free_port
from pretraining.system.machines.rendezvous import find_store


@pytest.fixture(autouse=True)
def first_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)


def test_the_first_process_has_the_store_and_the_others_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("MASTER_PORT", str(port))
    first = find_store(seconds=30)
    monkeypatch.setenv("RANK", "1")
    second = find_store(seconds=30)
    first.store.set("key", "value")
    assert second.store.get("key") == b"value"
    assert str(second) == f"MASTER_ADDR=127.0.0.1, port {port}"
    assert (second.own_end, second.other_end) == ("127.0.0.1", "127.0.0.1")


def test_restarts_of_torchrun_do_not_read_what_the_attempt_before_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    first = find_store(seconds=30)
    first.store.set("problem", "old")
    for name, value in {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not find_store(seconds=30).store.check(["problem"])


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=f"--master_port={port}: another run uses it"):
            find_store(seconds=5)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(UserError, match=r"MASTER_ADDR=127.0.0.1, port 1: process 0 does not answer within 0 s"):
        find_store(seconds=0.2)
    monkeypatch.setenv("MASTER_PORT", "one")
    with pytest.raises(UserError, match="MASTER_PORT=one: is not a port"):
        find_store(seconds=1)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match="MASTER_ADDR: is not set"):
        find_store(seconds=1)
