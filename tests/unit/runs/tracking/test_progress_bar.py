"""A terminal, of which the test holds the other end, and no terminal."""

import fcntl
import io
import logging
import os
import pty
import select
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from pretraining.cli.logs import setup_logging
from pretraining.runs.tracking.progress_bar import RunDisplay

RECORD = {"loss": 2.5, "smoothed_loss": 2.6, "learning_rate": 3e-4, "grad_norm": 0.7, "seconds_left": 100.0}
RECORD |= {"tokens_per_second_per_gpu": 14000.4, "perplexity": 12.18, "tokens": 4_000_000, "mfu": 0.41}


@contextmanager
def terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Stderr is a terminal of so many columns; the other end of it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    logger = logging.getLogger("pretraining")
    before = logger.handlers, logger.propagate, logger.level
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        setup_logging()
        yield ours
    os.close(ours)
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def shown_on(terminal_end: int) -> str:
    """All that was written; the kernel hands it over in pieces."""
    pieces = []
    while select.select([terminal_end], [], [], 0.5)[0]:
        pieces.append(os.read(terminal_end, 1 << 16))
    return b"".join(pieces).decode()


def show(logs: list[dict[str, Any]], *, is_first: bool = True) -> None:
    """Two steps, a warning in between."""
    state = TrainerState(global_step=0, max_steps=20, is_world_process_zero=is_first)
    display = RunDisplay()
    display.on_train_begin(None, state, TrainerControl())
    for record in logs:
        state.global_step += 1
        display.on_step_end(None, state, TrainerControl())
        display.on_log(None, state, TrainerControl(), logs=record)
        logging.getLogger("pretraining.test").warning("something")
    display.on_train_end(None, state, TrainerControl())


@pytest.mark.parametrize(
    ("columns", "last"), [(60, "1 min 40 s left"), (80, "lr 3.00e-04"), (120, "MFU 41.0 %"), (200, "MFU 41.0 %")]
)
def test_on_a_terminal_a_bar_has_the_figures_that_fit(columns: int, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(columns, monkeypatch) as other_end:
        show([RECORD, {"eval_loss": 2.0, "eval_perplexity": 7.4, "eval_accuracy": 0.25}])
        shown = shown_on(other_end)
    bars = [line for line in shown.replace("\n", "\r").split("\r") if line.startswith("step ") and "|" in line]
    assert bars[0].startswith("step 0/20 |")
    assert bars[-1].startswith("step 2/20 |")
    assert "loss 2.5000 (2.6000)" in bars[-1]
    assert last in bars[-1]
    assert all(len(bar) <= columns for bar in bars)
    assert max(map(len, bars)) > columns - 5, "a bar is as wide as its terminal"
    assert "step  2/20  validation loss 2.0000" in shown, "what is more than a line of figures stands above the bar"
    assert shown.count("warning: something\r\n") == 2


def test_a_terminal_that_is_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            raise OSError(5, "Input/output error")

        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setattr(logging, "raiseExceptions", False)
    show([RECORD, RECORD])


def test_elsewhere_each_record_is_a_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("pretraining"), "propagate", True)
    caplog.set_level(logging.INFO, logger="pretraining")
    show([RECORD, RECORD])
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert [line[:12] for line in lines] == ["step  1/20  ", "step  2/20  "]
    caplog.clear()
    show([RECORD], is_first=False)
    assert not [record for record in caplog.records if record.levelno == logging.INFO]


def test_the_same_scores_of_tasks_are_shown_once_at_a_step(caplog: pytest.LogCaptureFixture) -> None:
    """With --eval_blocks the evaluations of a part and of all validation after the last step both have them."""
    whole = {"eval_loss": 2.5, "eval_perplexity": 12.2, "eval_accuracy": 0.5, "task/arc/acc": 0.625}
    part, best = {**whole, "eval_blocks": 10}, {**whole, "task/arc/acc": 0.75}  # that of --load_best_model_at_end
    display, state = RunDisplay(), TrainerState(global_step=10, max_steps=20, is_world_process_zero=True)
    counts = []
    for step, record in ((10, part), (20, part), (20, whole), (20, best)):
        state.global_step = step
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="pretraining"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(logging.getLogger("pretraining"), "propagate", True)
            display.on_log(None, state, TrainerControl(), logs=record)
        counts.append(sum("task arc" in message for message in caplog.messages))
        assert len(caplog.messages) == 1 + counts[-1]
    assert counts == [1, 1, 0, 1]
