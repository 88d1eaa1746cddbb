"""A process that counts lives; one that has stopped is found."""

import time

import pytest
from torch.distributed import HashStore

from pretraining.system.machines import presence
from pretraining.system.machines.presence import Heartbeat, Listener


def test_a_stopped_heartbeat_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(presence, "SILENT_SECONDS", 2.0)
    store = HashStore()
    living, stopped = Heartbeat(store, 0), Heartbeat(store, 1)
    living.start()
    stopped.start()
    listener = Listener(store)
    ranks = (0, 1, 2)  # of which the last never began
    while store.add("beats/1", 0) == 0:
        time.sleep(0.01)
    assert listener.silent(ranks) == []
    stopped.stop()
    assert not stopped.is_alive()
    found: list[int] = []
    while not found:
        time.sleep(0.03)
        found = listener.silent(ranks)
    assert found == [1]
    living.stop()


def test_listening_takes_its_time() -> None:
    """It asks for each of the other processes: not in each turn of a loop."""
    listener = Listener(HashStore())
    assert listener.is_due()
    assert listener.silent([0]) == []
    assert not listener.is_due()
