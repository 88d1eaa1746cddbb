"""Read the items of a JSON file that is a list, one by one, in bounded memory."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from pretraining.data.input.documents import BYTE_ORDER_MARK, SHOWN_BYTES, RawLine

READ_BYTES = 1 << 20
SPACE = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()
DECODING_ERRORS = (ValueError, RecursionError)
ESCAPE_LENGTH = 12  # the longest token that the end of a text can cut: two escapes of 16 bits for one character


def begins_list(stream: BinaryIO) -> bool:
    """Whether the first character of a file is that of a list; the stream stays where it is."""
    head = stream.peek(1)  # type: ignore[attr-defined]
    return head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")


def list_items(stream: BinaryIO, max_bytes: int) -> Iterator[RawLine]:
    """Each item of the list as a line whose number is that of the item.

    What cannot be read as an item, and whatever follows the list, is a last line of bytes that are not JSON. An item
    above `max_bytes` is a last line without content.
    """
    text = _Text(stream)
    text.skip_space()
    text.skip(1)  # the bracket
    number = 0
    while (separator := text.skip_space()) != "]":
        number += 1
        if number > 1:
            if separator != ",":
                yield text.rest(number)
                return
            text.skip(1)
        item = text.item(number, max_bytes)
        yield item
        if not isinstance(item.content, dict):
            return
    text.skip(1)
    if text.skip_space():
        yield text.rest(number + 1)


class _Text:
    """Text of a stream that is not yet parsed, and the byte where it begins; what is not UTF-8 is lone surrogates."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._text = ""
        self._place = 0  # of the next character in it
        self._offset = 0  # of that character in the file

    def skip_space(self) -> str:
        """Skip space; the character after it, or nothing at the end."""
        while True:
            found = SPACE.match(self._text, self._place)
            assert found is not None
            self.skip(found.end() - self._place)
            if self._place < len(self._text) or not self._fill():
                return self._text[self._place : self._place + 1]

    def skip(self, num_characters: int) -> None:
        """Skip characters."""
        end = self._place + num_characters
        self._offset += len(self._text[self._place : end].encode("utf-8", "surrogateescape"))
        self._place = end

    def item(self, number: int, max_bytes: int) -> RawLine:
        """The next item, and skip it."""
        self.skip_space()
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._place)
                break
            except DECODING_ERRORS as error:
                if not _is_cut(error, self._text):
                    return self.rest(number)
                if len(self._text) - self._place > max_bytes:
                    return self.rest(number, is_too_large=True)
                if not self._fill():
                    return self.rest(number)
        begin = self._offset
        self.skip(end - self._place)
        if self._offset - begin > max_bytes:
            return RawLine(number, begin, number, self._offset, self._offset - begin, None, is_item=True)
        content: Any = value if isinstance(value, dict) else json.dumps(value).encode()
        return RawLine(number, begin, number, self._offset, self._offset - begin, content, is_item=True)

    def rest(self, number: int, *, is_too_large: bool = False) -> RawLine:
        """A line of the text that is left, which is not an item."""
        shown = self._text[self._place : self._place + SHOWN_BYTES].encode("utf-8", "surrogateescape")
        content = None if is_too_large else b"\0" + shown  # no JSON begins so
        return RawLine(number, self._offset, number, self._offset, len(shown), content, shown, is_item=True)

    def _fill(self) -> bool:
        """Read more, and drop what was parsed; whether there was more."""
        content = self._stream.read(READ_BYTES)
        self._text = self._text[self._place :] + self._decoder.decode(content, final=not content)
        self._place = 0
        return bool(content)


def _is_cut(error: Exception, text: str) -> bool:
    """Whether more text might make an item of it: it ends within a string, or the error is at its end."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip()) - ESCAPE_LENGTH
