"""Normalize UTF-8 text for comparison: the loop that Numba compiles, and the characters' properties that it reads."""

import itertools
import unicodedata
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Bits of a character's entry. Its combining class is in bits 8 to 15, and the number of its case folding above.
WORD, UNSPACED, SPACE, FOLDS, MAY_COMPOSE = 1, 2, 4, 8, 16
PAGE = 256
# Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese put no spaces between words: there each character is a word.
UNSPACED_RANGES = (
    ("\u0e00", "\u109f"),
    ("\u1780", "\u17ff"),
    ("\u3040", "\u30ff"),
    ("\u3400", "\u4dbf"),
    ("\u4e00", "\u9fff"),
    ("\uf900", "\ufaff"),
    ("\U00020000", "\U0003ffff"),
)
ASSIGNED = (range(0x40000), range(0xE0000, 0xE1000))  # other characters, e.g. of private use, have no properties


class CharacterTables(NamedTuple):
    """The entry of character c is `entries[pages[c >> 8] + (c & 255)]`; its case folding n is `folds[3 * n]` and on."""

    pages: NDArray[np.int32]
    entries: NDArray[np.uint32]
    folds: NDArray[np.int32]


def character_tables() -> CharacterTables:
    """Properties of all characters by Python's version of Unicode: 140 KB, made in 0.3 s."""
    entries = np.zeros(0x110000, np.uint32)
    folds: list[tuple[int, ...]] = [(0, 0, 0)]
    for code in itertools.chain(*ASSIGNED):
        character = chr(code)
        entries[code] |= _properties(character)
        folded = character.casefold()
        if folded != character:
            entries[code] |= FOLDS | len(folds) << 16
            folds.append(tuple(map(ord, folded.ljust(3, "\0"))))
        if unicodedata.decomposition(character)[:1] not in ("", "<"):
            _note_composition(character, entries)
    entries[0x1161:0x1176] |= MAY_COMPOSE  # Korean vowels and final consonants, which decompose by rule
    entries[0x11A8:0x11C3] |= MAY_COMPOSE
    for first, last in UNSPACED_RANGES:
        chosen = slice(ord(first), ord(last) + 1)
        entries[chosen] = entries[chosen] & ~np.uint32(WORD) | UNSPACED
    rows, first_use, page_rows = np.unique(entries.reshape(-1, PAGE), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first_use)  # so that ASCII is on the first page
    pages = np.argsort(order)[page_rows.reshape(-1)] * PAGE
    return CharacterTables(
        pages.astype(np.int32), np.ascontiguousarray(rows[order]).reshape(-1), np.array(folds, np.int32).reshape(-1)
    )


def _properties(character: str) -> int:
    is_word = character.isalnum() or character == "_"
    return WORD * is_word | SPACE * character.isspace() | unicodedata.combining(character) << 8


def _note_composition(character: str, entries: np.ndarray) -> None:
    """Mark what NFC replaces, and what it joins with the character before."""
    parts = [int(part, 16) for part in unicodedata.decomposition(character).split()]
    if len(parts) == 2:
        entries[parts[1]] |= MAY_COMPOSE
    if unicodedata.normalize("NFC", character) != character:
        entries[ord(character)] |= MAY_COMPOSE


def decode(data: NDArray[np.uint8], start: int) -> tuple[np.int64, int]:
    """The character at a place, and the place of the next one."""
    first = np.int64(data[start])
    if first < 0x80:
        return first, start + 1
    second = np.int64(data[start + 1]) & 0x3F
    if first < 0xE0:
        return (first & 0x1F) << 6 | second, start + 2
    third = np.int64(data[start + 2]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, start + 3
    return (first & 0x07) << 18 | second << 12 | third << 6 | np.int64(data[start + 3]) & 0x3F, start + 4


def encode(character: np.int64, output: NDArray[np.uint8], end: int) -> int:
    """Write a character; returns the place behind it."""
    if character < 0x80:
        output[end] = character
        return end + 1
    if character < 0x800:
        output[end] = 0xC0 | character >> 6
    elif character < 0x10000:
        output[end] = 0xE0 | character >> 12
        end += 1
        output[end] = 0x80 | character >> 6 & 0x3F
    else:
        output[end] = 0xF0 | character >> 18
        output[end + 1] = 0x80 | character >> 12 & 0x3F
        end += 2
        output[end] = 0x80 | character >> 6 & 0x3F
    output[end + 1] = 0x80 | character & 0x3F
    return end + 2


def normalize(
    data: NDArray[np.uint8], start: int, end: int, is_nfc: int, tables: CharacterTables, output: NDArray[np.uint8]
) -> int:
    """Fold the case of `data[start:end]` and squeeze its whitespace; returns the number of bytes of `output`.

    They are at most three times as many as before, and one. The result is -1 if `is_nfc` is 0 and the text may not be
    in NFC, by the quick check of Unicode's annex 15.
    """
    length = 0
    after_space = True
    last_class = np.int64(0)
    while start < end:
        if data[start] < 0x80:
            entry = tables.entries[data[start]]
            is_space = entry & np.uint32(SPACE) != 0
            folded = data[start] + ((entry & np.uint32(FOLDS)) << np.uint32(2))  # the bit is 8, and "a" is "A" + 32
            output[length] = 0x20 if is_space else folded
            length += not (is_space and after_space)
            after_space = is_space
            last_class = np.int64(0)
            start += 1
            continue
        character, start = decode(data, start)
        entry = tables.entries[tables.pages[character >> 8] + (character & 0xFF)]
        combining = np.int64(entry >> np.uint32(8)) & 0xFF
        if not is_nfc and (entry & np.uint32(MAY_COMPOSE) or 0 < combining < last_class):
            return -1
        last_class = combining
        if entry & np.uint32(SPACE):
            output[length] = 0x20
            length += not after_space
            after_space = True
        else:
            length = _fold(character, np.int64(entry), tables.folds, output, length)
            after_space = False
    return length - 1 if length and output[length - 1] == 0x20 else length


def _fold(character: np.int64, entry: np.int64, folds: NDArray[np.int32], output: NDArray[np.uint8], end: int) -> int:
    if not entry & FOLDS:
        return encode(character, output, end)
    place = (entry >> 16) * 3
    end = encode(np.int64(folds[place]), output, end)
    for other in range(place + 1, place + 3):
        if folds[other]:
            end = encode(np.int64(folds[other]), output, end)
    return end
