"""The bar of long work is as wide as its terminal."""

import pytest

from pretraining.cli.logs import line_columns
from pretraining.cli.progress import Progress
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
