"""Pushes in the background: none is lost without a word, the newest wins, the training never waits."""

import threading
from pathlib import Path

import pytest

from pretraining.hub import push_queue
from pretraining.hub.push_queue import PushQueue, UploadPayload


class Hub:
    """Takes parcels when it is let, and fails as often as it was told to before."""

    def __init__(self, *, failures: int = 0, is_open: bool = True) -> None:
        self.failures, self.arrived, self.asked = failures, [], []
        self.problems: list[tuple[int, str, bool]] = []
        self.opened, self.began, self.told, self.done = (threading.Event() for _ in range(4))
        if is_open:
            self.opened.set()

    def push(self, parcel: UploadPayload) -> None:
        self.asked.append(parcel.step)
        self.began.set()
        assert self.opened.wait(10)
        assert (parcel.folder / "weights").read_text() == f"{parcel.step}"
        if self.failures:
            self.failures -= 1
            raise OSError("no route to host")
        self.arrived.append(parcel.step)
        self.done.set()

    def tell(self, parcel: UploadPayload, problem: str, is_over: bool) -> None:
        self.problems.append((parcel.step, problem, is_over))
        self.told.set()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_queue, "FIRST_PAUSE_SECONDS", 0.0)


def parcel(folder: Path, step: int) -> UploadPayload:
    path = folder / f"step-{step}"
    path.mkdir()
    (path / "weights").write_text(f"{step}")
    return UploadPayload(step, f"model of step {step}", path, ())


def test_the_newest_takes_the_place_of_what_waits(tmp_path: Path) -> None:
    hub = Hub(is_open=False)
    queue = PushQueue(hub.push, hub.tell)
    queue.put(parcel(tmp_path, 1))
    assert hub.began.wait(10)
    for step in (2, 3, 4):
        queue.put(parcel(tmp_path, step))
    assert [waiting.step for waiting in queue.unfinished] == [1, 4]
    assert {path.name for path in tmp_path.iterdir()} == {"step-1", "step-4"}
    hub.opened.set()
    assert hub.done.wait(10)
    queue.close()
    assert hub.arrived in ([1], [1, 4])  # what waits at the end is that of the one who closes it
    expected = [(step, f"superseded by that of step {step + 1}", True) for step in (2, 3)]
    assert hub.problems == expected


def test_what_fails_is_tried_again_and_said_once(tmp_path: Path) -> None:
    hub = Hub(failures=20)
    queue = PushQueue(hub.push, hub.tell)
    queue.put(parcel(tmp_path, 1))
    assert hub.done.wait(10)
    queue.close()
    assert hub.asked == [1] * 21
    assert hub.problems == [(1, "OSError: no route to host", False)]
    assert not list(tmp_path.iterdir())
    assert not queue.unfinished


def test_a_failing_push_makes_way_for_a_newer_one_and_for_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_queue, "FIRST_PAUSE_SECONDS", 600.0)
    hub = Hub(failures=1)
    queue = PushQueue(hub.push, hub.tell)
    queue.put(parcel(tmp_path, 1))
    assert hub.told.wait(10)
    queue.put(parcel(tmp_path, 2))
    assert hub.done.wait(10)
    assert hub.asked == [1, 2]
    hub.failures = 1
    hub.told.clear()
    queue.put(parcel(tmp_path, 3))
    assert hub.told.wait(10)
    queue.close()
    assert hub.arrived == [2]
    assert [step for step, _, _ in hub.problems] == [1, 3]
