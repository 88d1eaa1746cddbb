"""A record of the log is one line, whatever it quotes, and acts on no terminal."""

import sys
import unicodedata

import pytest

from tests.conftest import run

HOSTILE = "a.jsonl\nerror: the run ended\x1b]0;owned\x07\x9b31m\u202e\udcff https://me:hunter2@host"
PROGRAM = """
import logging, sys
from pretraining.cli.program import run_program
from pretraining.errors import UserError
logger = logging.getLogger("pretraining.x")
TEXT = {text!r}
def main(argv):
    logger.info("found %s", TEXT)
    logger.warning(f"odd {{TEXT}}")
    try:
        raise ValueError(TEXT)
    except ValueError:
        logger.warning("with a traceback", exc_info=True)
    raise {error}
run_program(main)
"""


WIDE = """
import logging
from pretraining.cli.program import run_program
from pretraining.cli.logs import IN_ONE_LINE
logger = logging.getLogger("pretraining.x")
def main(argv):
    logger.info("took 12 s " * 30)
    logger.info("a" * 150)
    logger.info("run it " * 30, extra=IN_ONE_LINE)
    logger.warning("took 12 s " * 30)
run_program(main)
"""


def test_information_is_wrapped_and_what_is_searched_or_copied_is_whole() -> None:
    lines = run(sys.executable, "-c", WIDE).log.splitlines()
    wrapped, path, command, warning = lines[:-3], *lines[-3:]
    assert len(wrapped) == 3
    assert all(100 < len(line) <= 120 for line in wrapped[:-1])
    assert " ".join(line.strip() for line in wrapped) == ("took 12 s " * 30).strip()
    assert [line[:4] == "    " for line in wrapped] == [False, True, True]
    assert not [line for line in wrapped if line.endswith("12") or line.strip().startswith("s")]
    assert (path, command, warning) == ("a" * 150, "run it " * 30, "warning: " + "took 12 s " * 30)


@pytest.mark.parametrize("error", ["UserError(TEXT, 'second ' + TEXT)", "RuntimeError(TEXT)"])
def test_text_of_others_stays_in_its_line(error: str) -> None:
    done = run(sys.executable, "-c", PROGRAM.format(text=HOSTILE, error=error))
    lines = done.stderr.splitlines()
    assert not [one for one in done.stderr if unicodedata.category(one) in ("Cc", "Cf", "Cs") and one != "\n"]
    assert "hunter2" not in done.stderr
    shown = "a.jsonl\\x0aerror: the run ended\\x1b]0;owned\\x07\\x9b31m\\u202e\\udcff https://***@host"
    assert lines[:3] == [f"found {shown}", f"warning: odd {shown}", "warning: with a traceback"]
    if error.startswith("UserError"):
        assert (done.returncode, lines[-2:]) == (2, [f"error: {shown}", f"error: second {shown}"])
        assert done.errors == lines[-2:]
    else:
        assert done.returncode == 1
        assert [line for line in lines if line.startswith("Traceback")] == ["Traceback (most recent call last):"] * 2
