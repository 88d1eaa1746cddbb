"""Keys of texts by loops that Numba compiles: the same as those of `minhash.py` to the bit, without Python's lock.

A shingle's CRC-32 comes from the CRCs of the whole text up to its start and up to its end, since CRCs are linear. So
each byte is read once, not once per shingle that it is in.
"""

import numpy as np
from numpy.typing import NDArray

from pretraining.data.encode.blake2b import LANES, blake2b
from pretraining.data.encode.key_tables import MAX_SHIFT, MAX_WORDS, Keys, MinHashTables, Scratch, Tables, Texts
from pretraining.data.encode.normalize_bytes import UNSPACED, WORD, CharacterTables, decode, normalize

SHINGLE_WORDS = 5  # as for RefinedWeb and FineWeb
ALL_BITS = 0xFFFFFFFF
NEWLINE = 0x0A  # between the words of a shingle


def text_keys(texts: Texts, is_nfc: int, num_bands: int, tables: Tables, scratch: Scratch, keys: Keys) -> int:
    """Write the keys of texts; returns how many texts have none because they may not be in NFC.

    Without bands only fingerprints are computed.
    """
    band_bytes = 4 * len(scratch.minima) // max(num_bands, 1)
    blake = tables.blake
    start = num_left = 0
    for number in range(len(texts.ends)):
        length = normalize(texts.data, start, texts.ends[number], is_nfc, tables.characters, scratch.text)
        start = texts.ends[number]
        keys.is_done[number] = length >= 0
        num_left += length < 0
        if length < 0:
            continue
        blake2b(scratch.text, 0, length, blake.fingerprint, blake.lanes)
        keys.fingerprints[2 * number] = blake.lanes.words[0]
        keys.fingerprints[2 * number + 1] = blake.lanes.words[LANES]
        if num_bands:
            minhash(length, tables.characters, tables.minhash, scratch)
        for band in range(num_bands):
            blake2b(scratch.minima_bytes, band_bytes * band, band_bytes * (band + 1), blake.band, blake.lanes)
            keys.bands[num_bands * number + band] = blake.lanes.words[0]
    return num_left


def minhash(length: int, characters: CharacterTables, tables: MinHashTables, scratch: Scratch) -> None:
    """The minimum of each hash function over the shingles of a normalized text."""
    for number in range(len(scratch.minima)):
        scratch.minima[number] = np.uint32(ALL_BITS)
    scratch.before[0] = scratch.places[0] = 0
    start, num_words = _find_words(0, length, 0, characters, tables, scratch)
    if num_words < SHINGLE_WORDS:
        _add_only_shingle(length, num_words, tables, scratch)
    while num_words >= SHINGLE_WORDS:
        num_shingles = num_words - SHINGLE_WORDS + 1
        _add_shingles(num_shingles, SHINGLE_WORDS, tables, scratch)
        for word in range(SHINGLE_WORDS):  # the last four, and the place of the next
            scratch.before[word] = scratch.before[num_shingles + word]
            scratch.after[word] = scratch.after[num_shingles + word]
            scratch.places[word] = scratch.places[num_shingles + word]
        start, num_words = _find_words(start, length, SHINGLE_WORDS - 1, characters, tables, scratch)


def _find_words(
    start: int, length: int, num_words: int, characters: CharacterTables, tables: MinHashTables, scratch: Scratch
) -> tuple[int, int]:
    """Append the next words, as many as there is memory for; returns the place in the text, and the number of words."""
    text = scratch.text
    crc, place = scratch.before[num_words], scratch.places[num_words]
    in_word = False
    while start < length and num_words < MAX_WORDS:
        first = start
        while start < length and _is_ascii_word(text[start], characters.entries):
            crc = _step(crc, text[start], tables.crc)
            start += 1
        place += start - first
        in_word |= start > first
        kind, following = _kind(text, start, characters) if start < length else (np.int64(0), start)
        if kind and not (in_word and kind == UNSPACED):
            crc = _add_bytes(crc, text, start, following, tables.crc)
            place += following - start
            start = following
            in_word = True
        if in_word and kind != WORD:
            crc, place = _end_word(num_words, crc, place, tables.crc, scratch)
            num_words += 1
            in_word = False
        if not kind:
            start = following
    if in_word:
        _end_word(num_words, crc, place, tables.crc, scratch)
        num_words += 1
    return start, num_words


def _is_ascii_word(byte: np.uint8, entries: NDArray[np.uint32]) -> np.bool:
    return byte < 0x80 and entries[byte] & np.uint32(WORD) != 0


def _kind(text: NDArray[np.uint8], start: int, characters: CharacterTables) -> tuple[np.int64, int]:
    """Whether the character at a place is of a word, is a word, or is in none (0); and the place of the next one."""
    if text[start] < 0x80:
        return np.int64(characters.entries[text[start]]) & (WORD | UNSPACED), start + 1
    character, following = decode(text, start)
    entry = np.int64(characters.entries[characters.pages[character >> 8] + (character & 0xFF)])
    return entry & (WORD | UNSPACED), following


def _end_word(
    word: int, crc: np.uint32, place: int, table: NDArray[np.uint32], scratch: Scratch
) -> tuple[np.uint32, int]:
    scratch.after[word] = crc
    crc = _step(crc, np.uint8(NEWLINE), table)
    scratch.before[word + 1] = crc
    scratch.places[word + 1] = place + 1
    return crc, place + 1


def _step(crc: np.uint32, byte: np.uint8, table: NDArray[np.uint32]) -> np.uint32:
    return np.uint32(table[(crc ^ byte) & np.uint32(0xFF)] ^ (crc >> np.uint32(8)))


def _add_bytes(crc: np.uint32, text: NDArray[np.uint8], start: int, end: int, table: NDArray[np.uint32]) -> np.uint32:
    for byte in range(start, end):
        crc = _step(crc, text[byte], table)
    return crc


def _add_only_shingle(length: int, num_words: int, tables: MinHashTables, scratch: Scratch) -> None:
    """That of a text of less than five words: all its words, or the text if it has none."""
    if num_words == 0:
        crc = np.uint32(0)
        for byte in range(length):
            crc = _step(crc, scratch.text[byte], tables.crc)
        scratch.after[0] = crc
        scratch.places[1] = length + 1
        num_words = 1
    _add_shingles(1, num_words, tables, scratch)


def _add_shingles(num_shingles: int, num_words: int, tables: MinHashTables, scratch: Scratch) -> None:
    """Lower the minima by the hashes of the first shingles, which have `num_words` words."""
    for first in range(num_shingles):
        num_bytes = scratch.places[first + num_words] - 1 - scratch.places[first]
        crc = np.uint32(scratch.before[first] ^ np.uint32(ALL_BITS))
        while num_bytes > MAX_SHIFT:
            crc = _shift(crc, MAX_SHIFT, tables.shifts)
            num_bytes -= MAX_SHIFT
        crc = _shift(crc, num_bytes, tables.shifts)
        scratch.hashes[first] = _spread(crc ^ scratch.after[first + num_words - 1] ^ np.uint32(ALL_BITS))
    for function in range(len(scratch.minima)):
        factor, addend, lowest = tables.factors[function], tables.addends[function], scratch.minima[function]
        for shingle in range(num_shingles):
            lowest = min(lowest, np.uint32(scratch.hashes[shingle] * factor + addend))
        scratch.minima[function] = lowest


def _shift(crc: np.uint32, num_bytes: int, shifts: NDArray[np.uint32]) -> np.uint32:
    start, byte = 1024 * num_bytes, np.uint32(0xFF)
    low = shifts[start + (crc & byte)] ^ shifts[start + 256 + (crc >> np.uint32(8) & byte)]
    high = shifts[start + 512 + (crc >> np.uint32(16) & byte)] ^ shifts[start + 768 + (crc >> np.uint32(24))]
    return np.uint32(low ^ high)


def _spread(crc: np.uint32) -> np.uint32:
    """The finalizer of MurmurHash3, as in datasketch."""
    value = np.uint32(crc)
    value = np.uint32((value ^ (value >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    value = np.uint32((value ^ (value >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(value ^ (value >> np.uint32(16)))
