"""A file of continuations that was damaged while it grew is finished as if it had not been."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pretraining.errors import UserError
from pretraining.generation.generate import Completion
from pretraining.generation.output import OutputFile, read_completions

ORIGIN = {"seed": 42}
TEXTS = [Completion(f"prompt {n}", f"text {n}", 1, [5], -1.5, "eos", n, 0) for n in range(4)]
PROMPTS = {(text.prompt_number, text.sample_number): text.prompt for text in TEXTS}


def changed(**fields: object) -> Callable[[bytes], bytes]:
    return lambda line: json.dumps(json.loads(line) | fields).encode()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda line: bytes([line[0] ^ 4]) + line[1:],
    "half of it": lambda line: line[: len(line) // 2],
    "zeros": lambda line: b"\0" * len(line),
    "no UTF-8": lambda line: line.replace(b"text", b"te\xff\xfe"),
    "empty": lambda _: b"",
    "another value": lambda _: b"[1, 2]",
    "a number": lambda _: b"17",
    "deep": lambda _: b"[" * 100_000,
    "no prompt_number": lambda line: line.replace(b'"prompt_number"', b'"prompt_xumber"'),
    "a number as text": changed(prompt_number="2"),
    "a number that is not one": changed(sample_number=None),
    "a list as number": changed(prompt_number=[2]),
    "true": changed(prompt_number=True),
    "tokens": changed(tokens=None),
    "of no prompt": changed(prompt_number=99),
    "of another prompt": changed(prompt="prompt 9"),
    "a line break": lambda line: line.replace(b" ", b"\n", 1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_line_is_generated_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    with OutputFile(path, ORIGIN, PROMPTS) as output:
        for text in TEXTS[:3]:
            output.write(text)
    lines = partial.read_bytes().splitlines()
    partial.write_bytes(b"\n".join([*lines[:3], damage(lines[3]), b""]))
    with OutputFile(path, ORIGIN, PROMPTS) as output:
        assert output.done == {(0, 0), (1, 0)}
        assert "damaged and are generated again" in caplog.text
        for text in reversed(TEXTS[2:]):
            output.write(text)
        output.finalize()
    assert read_completions(path) == TEXTS
    assert path.read_text().count("\n") == len(TEXTS)
    assert not partial.exists()


def test_a_damaged_first_line_is_one_error(tmp_path: Path) -> None:
    partial = tmp_path / "out.jsonl.partial"
    for content in (b"{", b"[]", b"\xff", b"null", b'{"seed": 42, "x": 1}'):
        partial.write_bytes(content + b"\n" + json.dumps(dataclasses.asdict(TEXTS[0])).encode() + b"\n")
        with pytest.raises(UserError, match=r"was not written by generate\.py; move it away"):
            OutputFile(tmp_path / "out.jsonl", ORIGIN, PROMPTS)
