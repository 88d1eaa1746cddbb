"""Copy a JSON string without its escapes, as loops that Numba compiles; every byte is checked, as RFC 8259 demands.

A string that is wrong, or has half a surrogate pair, is left to the caller. PADDING_BYTES must follow the data.
"""

import numpy as np
from numpy.typing import NDArray

from pretraining.system.compiled.words import load_word, store_word

QUOTE, BACKSLASH, LETTER_U = np.frombuffer(b'"\\u', np.uint8).tolist()
ESCAPES = b'"\\/bfnrt'
ESCAPED = b'"\\/\b\f\n\r\t'
FAILED = -1
PADDING_BYTES = 16
FIRST_SURROGATE, FIRST_LOW_SURROGATE, AFTER_SURROGATES = 0xD800, 0xDC00, 0xE000
LOW_BITS, HIGH_BITS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
QUOTES, BACKSLASHES, SPACES = (LOW_BITS * np.uint64(byte) for byte in (QUOTE, BACKSLASH, 0x20))
EIGHT, ONE = np.uint64(8), np.uint64(1)


def copy_string(data: NDArray[np.uint8], place: int, out: NDArray[np.uint8], target: int) -> tuple[int, int]:
    """Copy the string that begins at `place`; gives the place after its quote (or FAILED), and its end in `out`.

    Up to 8 bytes behind the end are written, too. A line of JSON ends in a control character, where every string ends.
    """
    while True:
        place, target = _copy_plain(data, place, out, target)
        byte = data[place]
        if byte == QUOTE:
            return place + 1, target
        if byte == BACKSLASH:
            place, target = _copy_escape(data, place, out, target)
        elif byte >= 0x80:
            place, target = _copy_character(data, place, out, target)
        else:
            return FAILED, target  # a control character
        if place == FAILED:
            return FAILED, target


def _copy_plain(data: NDArray[np.uint8], place: int, out: NDArray[np.uint8], target: int) -> tuple[int, int]:
    """Copy up to the next quote, backslash, control character, or byte beyond ASCII; eight bytes at a time."""
    source, goal = np.uint64(place), np.uint64(target)
    special = np.uint64(0)
    while True:
        word = load_word(data, source)
        store_word(out, goal, word)
        special = (word | _zeros(word ^ QUOTES) | _zeros(word ^ BACKSLASHES) | ((word - SPACES) & ~word)) & HIGH_BITS
        if special != np.uint64(0):
            break
        source += EIGHT
        goal += EIGHT
    # All bits below the lowest one; one remains of each byte before it, and one of its byte.
    below = (special & (~special + ONE)) - ONE
    num_plain = (((below & LOW_BITS) * LOW_BITS) >> np.uint64(56)) - ONE
    return int(np.int64(source + num_plain)), int(np.int64(goal + num_plain))


def _zeros(word: np.uint64) -> np.uint64:
    """The high bit of the first byte that is zero, and of some behind it."""
    return (word - LOW_BITS) & ~word


def _copy_escape(data: NDArray[np.uint8], place: int, out: NDArray[np.uint8], target: int) -> tuple[int, int]:
    if data[place + 1] == LETTER_U:
        return _copy_code(data, place, out, target)
    for number in range(len(ESCAPES)):
        if data[place + 1] == ESCAPES[number]:
            out[target] = ESCAPED[number]
            return place + 2, target + 1
    return FAILED, target


def _copy_code(data: NDArray[np.uint8], place: int, out: NDArray[np.uint8], target: int) -> tuple[int, int]:
    """Copy the character of an escaped code, or of two of them that are a surrogate pair."""
    code = _code_at(data, place)
    place += 6
    if FIRST_SURROGATE <= code < FIRST_LOW_SURROGATE:
        low = _code_at(data, place)
        if not FIRST_LOW_SURROGATE <= low < AFTER_SURROGATES:
            return FAILED, target
        code = 0x10000 + (code - FIRST_SURROGATE) * 0x400 + low - FIRST_LOW_SURROGATE
        place += 6
    elif code == FAILED or FIRST_LOW_SURROGATE <= code < AFTER_SURROGATES:
        return FAILED, target
    return place, _put_character(code, out, target)


def _code_at(data: NDArray[np.uint8], place: int) -> int:
    """The number of an escaped code (RFC 8259, section 7); FAILED if it is something else."""
    if data[place] != BACKSLASH or data[place + 1] != LETTER_U:
        return FAILED
    code = 0
    for digit in range(place + 2, place + 6):
        byte = int(data[digit])
        letter = byte | 0x20
        if 0x30 <= byte <= 0x39:
            code = code * 16 + byte - 0x30
        elif 0x61 <= letter <= 0x66:
            code = code * 16 + letter - 0x57
        else:
            return FAILED
    return code


def _put_character(code: int, out: NDArray[np.uint8], target: int) -> int:
    """Write a character in UTF-8; gives its end."""
    if code < 0x80:
        out[target] = code
        return target + 1
    size = 2 + int(code >= 0x800) + int(code >= 0x10000)
    for number in range(size - 1, 0, -1):
        out[target + number] = 0x80 | code & 0x3F
        code >>= 6
    out[target] = (0xF00 >> size) & 0xFF | code
    return target + size


def _copy_character(data: NDArray[np.uint8], place: int, out: NDArray[np.uint8], target: int) -> tuple[int, int]:
    """Copy a character beyond ASCII, if it is right UTF-8 (RFC 3629, section 4)."""
    lead, second = int(data[place]), int(data[place + 1])
    if lead < 0xC2 or lead > 0xF4 or second < _least_second(lead) or second > _last_second(lead):
        return FAILED, target
    size = 2 + int(lead >= 0xE0) + int(lead >= 0xF0)
    out[target], out[target + 1] = lead, second
    for number in range(2, size):
        byte = data[place + number]
        if byte & 0xC0 != 0x80:
            return FAILED, target
        out[target + number] = byte
    return place + size, target + size


def _least_second(lead: int) -> int:
    """So that no character has more bytes than it needs."""
    if lead == 0xE0:
        return 0xA0
    return 0x90 if lead == 0xF0 else 0x80


def _last_second(lead: int) -> int:
    """So that there are neither surrogates nor characters beyond Unicode."""
    if lead == 0xED:
        return 0x9F
    return 0x8F if lead == 0xF4 else 0xBF
