"""The loops take from a line of JSON what `parse_json_line` does, or leave it."""

import json
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pretraining.data.encode.line_encoder import empty_texts
from pretraining.data.input.documents import Document, RawLine, ReadingOptions, SkippedLine, parse_json_line
from pretraining.data.input.json.loops import Lines
from pretraining.data.input.json.strings import FAILED, PADDING_BYTES
from pretraining.data.tokenize.compiled_backend import Functions

OPTIONS = ReadingOptions(max_document_bytes=1 << 20)
GAP = 1
CHARACTERS = 'abc "\\/\b\f\r\t\x00\x1f\x7féß€東🚆\u2028\u3000\xa0\x85\ufeff{}[],:'
ODD_BYTES = b'{}[]",:\\u019.-eE tfn\x00\x1f\x7f\x80\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc2\xe0\xed\xf0\xf4\xf5\xff'
Read = Callable[..., int]


def taken(read: Read, lines: Sequence[bytes]) -> list[tuple[bytes, bytes | None] | None]:
    """Text and source of each line, None of one that is left."""
    bounds = np.cumsum([0, *map(len, lines)])
    names = (np.frombuffer(name, np.uint8) for name in (b"text", b"source"))
    texts = empty_texts(np.diff(bounds), GAP)
    data = np.frombuffer(b"".join([*lines, bytes(PADDING_BYTES)]), np.uint8)
    num_left = read(Lines(data, bounds, *names), 0, texts)
    found: list[tuple[bytes, bytes | None] | None] = []
    for number in range(len(lines)):
        text, source = (
            None if ends[number] == FAILED else texts.data[begins[number] : ends[number]].tobytes()
            for begins, ends in ((texts.begins, texts.ends), (texts.source_begins, texts.source_ends))
        )
        found.append(None if text is None else (text, source))
        if text is not None:
            assert texts.begins[number] >= texts.spaces[number] + GAP, "space for a prefix"
    assert num_left == found.count(None)
    return found


def parsed(line: bytes) -> Document | SkippedLine:
    return parse_json_line(RawLine(7, 0, 7, len(line), len(line), line), OPTIONS)


def check(read: Read, lines: Sequence[bytes]) -> float:
    """The share of the documents that are taken, and not left."""
    documents = num_taken = 0
    for line, found in zip(lines, taken(read, lines), strict=True):
        document = parsed(line)
        documents += isinstance(document, Document)
        if found is not None:
            num_taken += 1
            assert isinstance(document, Document), line
            source = None if document.source is None else document.source.encode()
            assert found == (document.utf8, source), line
    return num_taken / max(documents, 1)


def some_text(chosen: random.Random) -> str:
    return "".join(chosen.choice(CHARACTERS) for _ in range(chosen.choice([0, 1, 2, 7, 8, 9, 16, 100])))


def some_value(chosen: random.Random, depth: int = 0) -> object:
    kind = chosen.randrange(9 if depth < 5 else 5)
    if kind < 3:
        return [chosen.choice([True, False, None]), chosen.randrange(-(10**17), 10**17), chosen.random() * 1e-4][kind]
    if kind < 5:
        return some_text(chosen)
    if kind < 7:
        return [some_value(chosen, depth + 1) for _ in range(chosen.randrange(3))]
    return {some_text(chosen): some_value(chosen, depth + 1) for _ in range(chosen.randrange(3))}


def some_line(chosen: random.Random) -> bytes:
    """A record, often with a field twice, or a wrong byte."""

    def written(value: object) -> bytes:
        separators = chosen.choice([(",", ":"), (", ", ": "), (" ,\t", " :\r ")])
        return json.dumps(value, ensure_ascii=chosen.random() < 0.5, separators=separators).encode()

    fields = []
    for _ in range(chosen.randrange(1, 5)):
        key = written(chosen.choice(["text", "text", "source", "a", some_text(chosen)]))
        key = b'"te\\u0078t"' if chosen.random() < 0.1 else key
        fields.append(key + b":" + written(some_text(chosen) if chosen.random() < 0.7 else some_value(chosen)))
    line = bytearray(b"{" + b", ".join(fields) + b"}")
    if chosen.random() < 0.4:
        place = chosen.randrange(len(line))
        line[place : place + chosen.randrange(3)] = bytes([chosen.choice(ODD_BYTES)])
    return bytes(line) + chosen.choice([b"\n", b"\r\n", b" \n"])


@pytest.mark.guarantee("JSON lines that compiled loops read have the text and source that Python reads.")
@pytest.mark.parametrize("seed", range(3))
def test_random_lines_whole_and_damaged(seed: int, compiled: Functions) -> None:
    chosen = random.Random(seed)
    assert check(compiled.read_json_lines, [some_line(chosen) for _ in range(4000)]) > 0.25, "not all are left"


def test_the_same_loops_in_python(interpreted: Functions) -> None:
    """Arrays check their bounds there, which machine code does not."""
    chosen = random.Random(9)
    check(interpreted.read_json_lines, [some_line(chosen) for _ in range(500)])


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"text": "one", "meta": {"a": [1, -2.5, {"b": null}], "c": {}}, "score": 0.25}\n', (b"one", None)),
        (b' \t{ "source" : "web" , "text" : "a\\u00e9\\ud83d\\ude86\\n" } \r\n', (b"web", "aé🚆\n")),
        (b'{"text": "one", "text": "two"}\n', None),
        (b'{"text": "one", "source": "a", "source": 3}\n', None),
        (b'{"text": "one", "n": 01}\n', None),
        (b'{"text": "one", "n": 1.}\n', None),
        (
            b'{"text": "one", "a": 0.9717118740081787, "b": -1e-05, "c": [0, 2E+9, 12345678901234567890]}\n',
            (b"one", None),
        ),
        (b'{"text": "one", "n": 1e400}\n', None),
        (b'{"text": "one", "n": 1e}\n', None),
        (b'{"text": "one", "n": [1,]}\n', None),
        (b'{"text": "one", "n": {"a": 1]}\n', None),
        (b'{"text": "one",}\n', None),
        (b'{"text": "one"} {}\n', None),
        (b'{"text": "one"\n', None),
        (b'"text": "one"}\n', None),
        (b'{"text": "\\ud83d"}\n', None),
        (b'{"text": "\\ude86"}\n', None),
        (b'{"text": " \\n\\u00a0"}\n', None),
        (b'{"text": null}\n', None),
        (b'{"text": "' + b"[" * 100 + b'"}\n', (b"[" * 100, None)),
        (b'{"text": "one", "n": ' + b"[" * 100 + b"]" * 100 + b"}\n", None),
    ],
)
def test_lines_that_are_taken_and_left(line: bytes, found: tuple[bytes, object] | None, compiled: Functions) -> None:
    if found is not None and found[0] == b"web":
        found = ("aé🚆\n".encode(), b"web")
    assert taken(compiled.read_json_lines, [line]) == [found]


def test_numbers_are_those_of_orjson(compiled: Functions) -> None:
    chosen = random.Random(0)
    numbers = {
        "".join(chosen.choices("0123456789.-+eE", [9] + [3] * 9 + [9] * 5, k=chosen.randrange(1, 9)))
        for _ in range(20_000)
    }
    lines = [b'{"text":"a","n":%s}\n' % number.encode() for number in sorted(numbers)]
    assert check(compiled.read_json_lines, lines) > 0.9, "all but exponents of three digits"


def test_a_line_never_takes_from_the_next_one(compiled: Functions) -> None:
    starts = [
        b"{",
        b'{"text"',
        b'{"text":',
        b'{"text": "a',
        b'{"text": "a"',
        b'{"a":1,',
        b'{"text":"a","n":tru',
        b'{"n":"\\u00',
    ]
    ends = [b"}\n", b'"a"}\n', b':"a"}\n', b'"text":"a"}\n', b',"b":1}\n', b"e}\n", b'e9"}\n', b'{"text":"a"}\n']
    for start in starts:
        for end in ends:
            found = taken(compiled.read_json_lines, [start + b"\n", end])
            assert found[0] is None
            assert (found[1] is None) == (end != ends[-1])
