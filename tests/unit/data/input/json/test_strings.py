"""The characters of JSON strings, in UTF-8 and as escapes, are those that orjson reads."""

import json

import orjson

from pretraining.data.tokenize.compiled_backend import Functions
from tests.unit.data.input.json.test_loops import taken


def test_every_character_alone_and_escaped(compiled: Functions) -> None:
    """All of the planes that have characters; of the others, and of escapes, one in 41."""
    planes = {*range(0x40000), *range(0xE0000, 0xE1000)}
    for escapes, codes in ((False, planes | {*range(0x40000, 0x110000, 41)}), (True, {*range(0, 0x110000, 41)})):
        characters = [chr(code) for code in sorted(codes) if not 0xD800 <= code < 0xE000]
        lines = [b'{"text":' + json.dumps(one, ensure_ascii=escapes).encode() + b"}\n" for one in characters]
        found = taken(compiled.read_json_lines, lines)
        for character, one in zip(characters, found, strict=True):
            assert one == (character.encode(), None) or (one is None and ord(character) <= 0x303F)
            assert one is None or not character.isspace()


def test_every_start_of_a_character_in_utf8(compiled: Functions) -> None:
    """All three bytes behind a letter, of which most are no character: as orjson decides."""
    seconds = [*range(0x20, 0x100, 57), 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0]
    lines = [
        b'{"text":"a%sb"}\n' % bytes([lead, second, third])
        for lead in range(0x80, 0x100)
        for second in seconds
        for third in seconds
    ]
    found = taken(compiled.read_json_lines, lines)
    for line, one in zip(lines, found, strict=True):
        try:
            expected = orjson.loads(line)["text"].encode()
        except orjson.JSONDecodeError:
            assert one is None
        else:
            assert one == (expected, None)
