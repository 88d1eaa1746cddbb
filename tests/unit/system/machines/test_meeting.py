"""Processes that meet agree: on what each of them has, or on the first problem."""

import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import PrefixStore, TCPStore

from pretraining.errors import UserError
from pretraining.system.launchers import free_port
from pretraining.system.machines import meeting, presence
from pretraining.system.machines.meeting import Meeting, SharedError, gather, leave, shared
from pretraining.system.machines.presence import Heartbeat

Work = Callable[[Meeting], Any]
HOSTS = ("node-a", "node-b", "node-c")


@pytest.fixture(autouse=True)
def one_per_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is missing never sees the problem, and the others wait this long for that; here the store outlives them."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr(meeting, "LEAVE_SECONDS", 0.5)


def at_meeting(works: Sequence[Work]) -> list[Any]:
    """What each of several processes, here threads with a connection each, returns or raises."""
    port, timeout = free_port(), timedelta(seconds=30)
    server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timeout)
    results: list[Any] = [None] * len(works)

    def attend(rank: int) -> None:
        store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timeout)
        prefixed, place = PrefixStore("meeting", store), "MASTER_ADDR=here, port 1"
        own = Meeting(prefixed, place, rank, len(works), HOSTS[rank], Heartbeat(prefixed, rank))
        own.heartbeat.start()
        try:
            results[rank] = works[rank](own)
        except SharedError as error:
            results[rank] = error
        own.heartbeat.stop()

    threads = [threading.Thread(target=attend, args=(rank,)) for rank in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del server
    return results


def test_all_get_the_values_of_all() -> None:
    values: list[dict[str, Any]] = [{"host": host, "gpus": None} for host in HOSTS]
    works = [lambda own: [own.gather("machine", values[own.rank], seconds=30) for _ in range(2)][1]] * 3
    assert at_meeting(works) == [values] * 3


def test_a_problem_of_one_is_that_of_all_in_the_words_of_the_first() -> None:
    def fine(own: Meeting) -> Any:
        return own.gather("blocks", 1, seconds=30)

    def with_problem(own: Meeting) -> Any:
        return own.leave_with([f"{own.host}: --dataset x: is missing", "more"], 2)

    found = at_meeting([fine, with_problem, fine])
    assert {type(each) for each in found} == {SharedError}
    assert {each.problems for each in found} == {("node-b: --dataset x: is missing", "more")}
    crashed = at_meeting([fine, lambda own: own.leave_with(["node-b: crashed"], 1)])
    assert [each.exit_code for each in crashed] == [1, 1]
    both = at_meeting([with_problem, with_problem])
    assert both[0].problems == both[1].problems


def test_who_does_not_come_is_named() -> None:
    def come(own: Meeting) -> Any:
        return own.gather("host", {"host": own.host}, seconds=30)

    def come_and_wait(own: Meeting) -> Any:
        come(own)
        return own.gather("blocks", 1, seconds=0.5)

    found = at_meeting([come_and_wait, come])
    assert "1 of 2 processes did not come to MASTER_ADDR=here, port 1 within 0 s (process 1 on node-b; those" in str(
        found[0]
    )


def test_the_host_of_who_never_came_is_that_of_the_process_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")

    def come(own: Meeting) -> Any:
        return own.gather("host", {"host": own.host}, seconds=0.5)

    found = at_meeting([come, lambda own: own.gather("later", 1, seconds=30)])
    assert "(process 1 on node-a; those of node-a did)" in str(found[0])


def test_who_dies_meanwhile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(presence, "SILENT_SECONDS", 3.0)

    def come(own: Meeting) -> None:
        own.gather("host", {"host": own.host}, seconds=30)
        if own.rank == 1:
            own.heartbeat.stop()  # as of a process that was killed
        else:
            own.gather("blocks", 1, seconds=30)

    first, _, third = at_meeting([come, come, come])
    assert "node-a: process 1 on node-b: no sign of life for " in str(first)
    assert str(third) == str(first)


def test_a_process_0_that_was_killed_is_a_crash() -> None:
    """Which supervisors retry, and not a mistake of the user."""
    port, timeout = free_port(), timedelta(seconds=30)
    server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timeout)
    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timeout)
    own = Meeting(store, "MASTER_ADDR=here, port 1", 1, 2, "node-b", Heartbeat(store, 1))
    del server
    with pytest.raises(SharedError, match="port 1 does not answer any more, so process 0 or its") as raised:
        own.gather("blocks", 1, seconds=30)
    assert raised.value.exit_code == 1


def test_without_a_meeting_each_process_is_alone() -> None:
    assert gather("machine", {"a": 1}, seconds=1) == [{"a": 1}]
    error = UserError("--flag: wrong")
    assert shared(error) is error
    with pytest.raises(UserError, match="two versions"):
        leave(["two versions"])
