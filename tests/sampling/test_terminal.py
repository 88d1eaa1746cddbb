"""What a terminal shows of a growing text is never taken back."""

import pytest

from pretraining.sampling.generation import Continuation
from pretraining.sampling.growing import Job
from pretraining.sampling.terminal import GrowingDisplay


def continuation(text: str) -> Continuation:
    return Continuation("A", text, 1, [1], 0.0, "stop", 0, 0)


def test_no_half_characters_and_nothing_of_a_stop_text(capsys: pytest.CaptureFixture) -> None:
    display, job = GrowingDisplay(["END", "\n\n"]), Job("A", [1], 0, 0)
    shown = []
    for text in (" b", " b\N{REPLACEMENT CHARACTER}", " bü E", " bü EN", " bü ENT\n", " bü ENT\nc END"):
        display.watch(job, text)
        shown.append(capsys.readouterr().out)
    assert shown == ["A b", "", "ü ", "", "ENT", "\nc "]
    display.end(continuation(" bü ENT\nc "))
    assert capsys.readouterr().out == "\n\n"


def test_the_rest_comes_when_the_text_ends_and_unseen_ones_come_whole(capsys: pytest.CaptureFixture) -> None:
    display = GrowingDisplay(["END"])
    display.watch(Job("A", [1], 0, 1), " EN")
    display.end(continuation(" EN"))
    assert capsys.readouterr().out == "A A EN\n\n"
