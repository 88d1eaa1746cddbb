"""The bar of long work is as wide as its terminal; work on all cores comes back in order."""

import logging
import threading

import pytest

from pretraining.cli import progress
from pretraining.cli.logs import line_columns
from pretraining.cli.progress import Progress, map_with_progress
from tests.unit.runs.tracking.test_progress_bar import shown_on, terminal


@pytest.mark.parametrize("columns", [80, 200])
def test_a_bar_is_as_wide_as_its_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(columns, monkeypatch) as other_end:
        assert line_columns() == columns
        with Progress(4_000) as progress:
            progress.advance(1_000, "12 documents")
        shown = shown_on(other_end)
    bars = [line for line in shown.split("\r") if "|" in line]
    assert columns - 5 < max(map(len, bars)) <= columns


def test_results_keep_the_order_of_their_items(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first ends last; items that are equal each have their own result."""
    monkeypatch.setattr(progress, "usable_cores", lambda: 2)
    monkeypatch.setattr(progress, "LINE_INTERVAL_SECONDS", 0.0)
    others_are_done = threading.Event()

    def work(item: list[str]) -> str:
        if item == ["last"]:
            others_are_done.set()
        return item[0] if others_are_done.wait(60) else "never"

    sized = [(["first"], 1), (["last"], 2), (["last"], 5)]
    with caplog.at_level(logging.INFO):
        assert list(map_with_progress(work, sized, "reading")) == [(item, item[0]) for item, _ in sized]
    assert [message.split(",")[0].strip() for message in caplog.messages] == ["12 %", "38 %", "100 %"]
