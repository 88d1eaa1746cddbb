"""What a terminal shows of a growing text is never taken back."""

import io

import pytest

from pretraining.generation.batching import Request
from pretraining.generation.generate import Completion
from pretraining.generation.terminal import StreamingPrinter


def completion(text: str) -> Completion:
    return Completion("A", text, 1, [1], 0.0, "stop", 0, 0)


def test_no_half_characters_and_nothing_of_a_stop_text(capsys: pytest.CaptureFixture) -> None:
    printer, request = StreamingPrinter(["END", "\n\n"]), Request("A", [1], 0, 0)
    shown = []
    for text in (" b", " b\N{REPLACEMENT CHARACTER}", " bü E", " bü EN", " bü ENT\n", " bü ENT\nc END"):
        printer.update(request, text)
        shown.append(capsys.readouterr().out)
    assert shown == ["A b", "", "ü ", "", "ENT", "\nc "]
    printer.end(completion(" bü ENT\nc "))
    assert capsys.readouterr().out == "\n\n"


def test_the_rest_comes_when_the_text_ends_and_unseen_ones_come_whole(capsys: pytest.CaptureFixture) -> None:
    printer = StreamingPrinter(["END"])
    printer.update(Request("A", [1], 0, 1), " EN")
    printer.end(completion(" EN"))
    assert capsys.readouterr().out == "A A EN\n\n"


def test_escape_sequences_of_a_model_reach_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_terminal in (True, False):
        screen = io.StringIO()
        screen.isatty = lambda is_one=has_terminal: is_one  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdout", screen)
        printer, request = StreamingPrinter([]), Request("A\x1b[2J", [1], 0, 0)
        for text in (" b\x1b", " b\x1b]52;c;cm0=\x07", " b\x1b]52;c;cm0=\x07\n\tc\x9b31m\u202e"):
            printer.update(request, text)
        exact = "A\x1b[2J b\x1b]52;c;cm0=\x07\n\tc\x9b31m\u202e"
        written_out = "A\\x1b[2J b\\x1b]52;c;cm0=\\x07\n\tc\\x9b31m\\u202e"
        assert screen.getvalue() == (written_out if has_terminal else exact)
