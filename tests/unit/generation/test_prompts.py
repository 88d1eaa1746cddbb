"""Prompts are text, wherever they come from."""

import io
import os
from pathlib import Path

import pytest

from pretraining.cli.arguments.generate import GenerateArguments
from pretraining.errors import UserError
from pretraining.generation import terminal
from pretraining.generation.prompts import read_prompts


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """What is piped in, by a shell whose locale lets any bytes through."""
    content = io.BytesIO()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content, "utf-8", errors="surrogateescape"))
    return content


@pytest.mark.parametrize("content", [b"\xff", b"caf\xc3", b"good\n\xed\xa0\x80\n"])
def test_bytes_that_are_not_text_are_one_line(content: bytes, stdin: io.BytesIO, tmp_path: Path) -> None:
    stdin.write(content)
    stdin.seek(0)
    with pytest.raises(UserError, match=r"^--prompt -: stdin: is not UTF-8 text; save it as UTF-8$"):
        read_prompts(GenerateArguments(prompt=["-"]))
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^--prompt_file {path}: is not UTF-8 text"):
        read_prompts(GenerateArguments(prompt_file=path))
    with pytest.raises(UserError, match=r"^--prompt '.*': is not UTF-8 text; check the terminal's settings$"):
        read_prompts(GenerateArguments(prompt=["good", os.fsdecode(content)]))


def test_half_a_character_of_json_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "good"}\n{"prompt": "\\ud83d"}\n')
    with pytest.raises(UserError, match=r"is not UTF-8 text"):
        read_prompts(GenerateArguments(prompt_file=path))


def test_lines_end_as_anywhere(stdin: io.BytesIO) -> None:
    stdin.write("one\r\n\ntwo\rdrei ü".encode())
    stdin.seek(0)
    assert read_prompts(GenerateArguments(prompt=["-"])) == ["one", "two", "drei ü"]


def test_a_typed_prompt_that_is_not_text_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    typed = iter(["\udcff", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    terminal.interactive_loop(None, None, GenerateArguments())  # type: ignore[arg-type]  # neither is asked
    assert "is not UTF-8 text" in caplog.text
