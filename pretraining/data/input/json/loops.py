"""Take the texts out of JSON lines, as loops that Numba compiles: without Python's lock.

What is taken is what `parse_json_line` takes: of an object, the text, if it is a string with something to read in it.
What is wrong, or rare, is left to `parse_json_line`: half a surrogate pair, a field twice, deep nesting.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretraining.data.input.json.strings import FAILED, QUOTE, copy_string
from pretraining.system.compiled.words import load_word

TAB, NEWLINE, RETURN, SPACE, COMMA, MINUS, POINT, ZERO, NINE, COLON = np.frombuffer(b"\t\n\r ,-.09:", np.uint8).tolist()
OPEN_BRACKET, CLOSE_BRACKET, OPEN_BRACE, CLOSE_BRACE = np.frombuffer(b"[]{}", np.uint8).tolist()
TRUE, FALSE, NULL = (np.uint64(int.from_bytes(literal, "little")) for literal in (b"true", b"false", b"null"))
FOUR_BYTES, FIVE_BYTES = np.uint64((1 << 32) - 1), np.uint64((1 << 40) - 1)
LETTER_E, PLUS, LOWER_CASE = 0x65, 0x2B, 0x20
MAX_NUMBER_BYTES, MAX_EXPONENT_DIGITS = 64, 2  # so all are below 10^163, and a double is not infinite
MAX_LEVELS = np.uint64(1 << 60)  # a bit each
VALUE, FIRST_VALUE, KEY, FIRST_KEY, NEXT = 0, 1, 2, 3, 4  # what is expected within a value; the first ones or its end
ONE = np.uint64(1)


class Lines(NamedTuple):
    """Lines of a file, one behind the other, and in UTF-8 the names of their fields for text and source.

    Line n is `data[bounds[n] : bounds[n + 1]]`; PADDING_BYTES follow the last one.
    """

    data: NDArray[np.uint8]
    bounds: NDArray[np.int64]
    text_field: NDArray[np.uint8]
    source_field: NDArray[np.uint8]


class Texts(NamedTuple):
    """Where the strings of each line go, and where they are; the places of a missing one are FAILED.

    `spaces[n]` is where the space of line n begins, which has its size and `gap` more; a text leaves `gap` bytes free
    before itself.
    """

    data: NDArray[np.uint8]
    spaces: NDArray[np.int64]
    gap: int
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    source_begins: NDArray[np.int64]
    source_ends: NDArray[np.int64]


def read_json_lines(lines: Lines, first: int, texts: Texts) -> int:
    """Take the text of each line, whose number in `texts` counts from `first`; gives how many are left to Python."""
    num_left = 0
    for line in range(len(lines.bounds) - 1):
        number = first + line
        texts.begins[number] = texts.ends[number] = FAILED
        texts.source_begins[number] = texts.source_ends[number] = FAILED
        is_object = _read_object(lines, lines.bounds[line], lines.bounds[line + 1], number, texts)
        if not is_object or not _has_content(texts.data, texts.begins[number], texts.ends[number]):
            texts.begins[number] = texts.ends[number] = FAILED
            num_left += 1
    return num_left


def _read_object(lines: Lines, place: int, end: int, number: int, texts: Texts) -> bool:
    """Read a line; gives whether it is an object, and nothing else."""
    data, free = lines.data, texts.spaces[number]
    place = _after(data, place, end, OPEN_BRACE)
    while place != FAILED:
        place, free = _read_member(lines, place, end, number, texts, free)
        if place == FAILED:
            return False
        if data[place] == CLOSE_BRACE:
            return _skip_space(data, place + 1, end) == end
        place = _after(data, place, end, COMMA)
    return False


def _read_member(lines: Lines, place: int, end: int, number: int, texts: Texts, free: int) -> tuple[int, int]:
    """Read a field; gives the place after it and the space behind it (or FAILED), and what is free in `texts.data`."""
    data = lines.data
    place, key_end = _copy_key(data, place, end, texts.data, free)
    if place == FAILED:
        return FAILED, free
    if _is_name(texts.data, free, key_end, lines.text_field):
        begin = free + texts.gap
        place, free = _copy_only(data, place, texts.data, begin, texts.ends[number])
        texts.begins[number], texts.ends[number] = begin, free
    elif _is_name(texts.data, free, key_end, lines.source_field) and (
        data[place] == QUOTE or texts.source_ends[number] != FAILED
    ):
        begin = free
        place, free = _copy_only(data, place, texts.data, begin, texts.source_ends[number])
        texts.source_begins[number], texts.source_ends[number] = begin, free
    else:
        place = _skip_value(data, place, end, texts.data, free)
    return place if place == FAILED else _skip_space(data, place, end), free


def _copy_only(
    data: NDArray[np.uint8], place: int, out: NDArray[np.uint8], target: int, earlier: int
) -> tuple[int, int]:
    """Copy the string at `place`, if it is one and there was no `earlier` one."""
    if data[place] != QUOTE or earlier != FAILED:
        return FAILED, target
    return copy_string(data, place + 1, out, target)


def _copy_key(data: NDArray[np.uint8], place: int, end: int, out: NDArray[np.uint8], target: int) -> tuple[int, int]:
    """Copy the key at `place`; gives the place of its value (or FAILED), and the end of the key in `out`."""
    if data[place] != QUOTE:
        return FAILED, target
    place, target = copy_string(data, place + 1, out, target)
    return place if place == FAILED else _after(data, place, end, COLON), target


def _is_name(text: NDArray[np.uint8], begin: int, end: int, name: NDArray[np.uint8]) -> bool:
    is_same = end - begin == len(name)
    for offset in range(min(end - begin, len(name))):
        is_same &= text[begin + offset] == name[offset]
    return is_same


def _after(data: NDArray[np.uint8], place: int, end: int, wanted: int) -> int:
    """The next place that is not a space after the byte that is wanted, which spaces may precede; or FAILED."""
    place = _skip_space(data, place, end)
    return _skip_space(data, place + 1, end) if place < end and data[place] == wanted else FAILED


def _skip_space(data: NDArray[np.uint8], place: int, end: int) -> int:
    while place < end and (data[place] == SPACE or TAB <= data[place] <= NEWLINE or data[place] == RETURN):
        place += 1
    return place


def _skip_value(data: NDArray[np.uint8], place: int, end: int, out: NDArray[np.uint8], free: int) -> int:
    """The place after a value of any kind, or FAILED; its strings go to `out` in passing."""
    levels = ONE  # the lowest bit is the innermost level, 1 of an object; the highest one is none
    expected = VALUE
    while expected != NEXT or levels != ONE:
        place = _skip_space(data, place, end)
        if place >= end or levels >= MAX_LEVELS:
            return FAILED
        if expected == NEXT:
            place, expected, levels = _go_on(data, place, levels)
        elif (expected == FIRST_KEY and data[place] == CLOSE_BRACE) or (
            expected == FIRST_VALUE and data[place] == CLOSE_BRACKET
        ):
            place, expected, levels = place + 1, NEXT, levels >> ONE
        elif expected in (KEY, FIRST_KEY):
            place, expected = _copy_key(data, place, end, out, free)[0], VALUE
        else:
            place, expected, levels = _begin_value(data, place, out, free, levels)
        if place == FAILED:
            return FAILED
    return place


def _go_on(data: NDArray[np.uint8], place: int, levels: np.uint64) -> tuple[int, int, np.uint64]:
    """Pass a comma, or the end of the innermost level."""
    is_object = levels & ONE == ONE
    if data[place] == COMMA:
        return place + 1, KEY if is_object else VALUE, levels
    if data[place] == (CLOSE_BRACE if is_object else CLOSE_BRACKET):
        return place + 1, NEXT, levels >> ONE
    return FAILED, NEXT, levels


def _begin_value(
    data: NDArray[np.uint8], place: int, out: NDArray[np.uint8], free: int, levels: np.uint64
) -> tuple[int, int, np.uint64]:
    """Pass a string, a number or a literal, or the beginning of an object or array."""
    byte = data[place]
    if byte == OPEN_BRACE:
        return place + 1, FIRST_KEY, levels << ONE | ONE
    if byte == OPEN_BRACKET:
        return place + 1, FIRST_VALUE, levels << ONE
    if byte == QUOTE:
        return copy_string(data, place + 1, out, free)[0], NEXT, levels
    if byte == MINUS or ZERO <= byte <= NINE:
        return _skip_number(data, place), NEXT, levels
    return _skip_literal(data, place), NEXT, levels


def _skip_number(data: NDArray[np.uint8], place: int) -> int:
    """The place after a number (RFC 8259, section 6), or FAILED; also if it might be too large."""
    begin = place
    place += int(data[place] == MINUS)
    after = place + 1 if data[place] == ZERO else _skip_digits(data, place)
    if after == place:
        return FAILED
    if data[after] == POINT:
        place = after + 1
        after = _skip_digits(data, place)
        if after == place:
            return FAILED
    if data[after] | LOWER_CASE == LETTER_E:
        place = after + 1 + int(data[after + 1] == MINUS or data[after + 1] == PLUS)
        after = _skip_digits(data, place)
        if not 1 <= after - place <= MAX_EXPONENT_DIGITS:
            return FAILED
    return after if after - begin <= MAX_NUMBER_BYTES else FAILED


def _skip_digits(data: NDArray[np.uint8], place: int) -> int:
    while ZERO <= data[place] <= NINE:
        place += 1
    return place


def _skip_literal(data: NDArray[np.uint8], place: int) -> int:
    """The place after true, false or null, or FAILED."""
    word = load_word(data, np.uint64(place))
    if word & FOUR_BYTES == TRUE or word & FOUR_BYTES == NULL:
        return place + 4
    return place + 5 if word & FIVE_BYTES == FALSE else FAILED


def _has_content(text: NDArray[np.uint8], place: int, end: int) -> bool:
    """Whether a character that is surely no whitespace comes before any that might be, beyond ASCII."""
    while place < end and (text[place] == SPACE or TAB <= text[place] <= RETURN):
        place += 1
    if place >= end:
        return False
    if text[place] < 0x80:
        return text[place] > SPACE
    return _is_visible(text[place], text[place + 1], text[place + 2])


def _is_visible(lead: np.uint8, second: np.uint8, third: np.uint8) -> bool:
    """Whether these bytes of a character beyond ASCII are surely of no whitespace."""
    if lead == 0xC2:
        return bool(second != 0x85 and second != 0xA0)
    if lead == 0xE2:
        return bool(second > 0x81 or 0x8A < third < 0x9F or third == 0xA6)  # with quotes, dashes and the ellipsis
    if lead == 0xE1:
        return bool(second != 0x9A)
    return bool(lead != 0xE3 or second != 0x80 or third != 0x80)
