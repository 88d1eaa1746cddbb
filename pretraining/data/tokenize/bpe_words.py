"""Divide texts into words and look them up in a cache, as loops that `system.compiled` compiles.

A text is cut between two characters that no merge can join. So words, 5 bytes on average for Llama 2, are encoded
independently, and nearly all are found in the cache.
"""

import numpy as np
from numpy.typing import NDArray

from pretraining.data.tokenize.bpe_merges import (
    CANNOT_ENCODE,
    EMPTY,
    FUSE_UNKNOWN,
    BpeTables,
    EncoderState,
    character_at,
    encode_word,
    hashed,
)

MAX_KEY_BYTES = 15  # of a cached word; the 16th byte is its length
WORDS_PER_ENTRY = 4  # uint64: two of key, two of up to six ids
MAX_CACHED_IDS = 6
NUM_PROBES = 4
ID_BITS = np.uint64(20)
ID_MASK = np.uint64((1 << 20) - 1)
COUNT_BITS = np.uint64(4)
COUNT_MASK = np.uint64(15)
KEY_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
BLOCK_WORDS = 1024  # which are found before the first one is looked up
CHARACTER_BITS = 21


def encode_batch(bounds: NDArray[np.uint64], lengths: NDArray[np.int64], tables: BpeTables, state: EncoderState) -> int:
    """Encode the documents `state.text[bounds[n] : bounds[n + 1]]`; gives the number of ids, or CANNOT_ENCODE.

    16 bytes must follow the last text; `ids` has space for one id per byte and 6 more.
    """
    total = 0
    for document in range(len(lengths)):
        before = total
        position, end = bounds[document], bounds[document + 1]
        while position < end:
            num_words = find_words(position, end, tables, state)
            total = encode_words(num_words, tables, state, total)
            if total < 0:
                return CANNOT_ENCODE
            position = state.starts[num_words]
        lengths[document] = total - before
    return total


def find_words(position: np.uint64, end: np.uint64, tables: BpeTables, state: EncoderState) -> int:
    """Put the starts of up to BLOCK_WORDS words and the end of the last into `state.starts`; gives their number."""
    text, starts = state.text, state.starts
    starts[0] = position
    count = 1
    previous, size = character_at(text, position)
    position += size
    while position < end and count <= BLOCK_WORDS:
        byte = text[position]
        if byte < 128 and previous < 128:
            starts[count] = position
            count += 1 - tables.ascii_joined[(previous << 7) | np.int64(byte)]
            previous = np.int64(byte)
            position += np.uint64(1)
        else:
            current, size = character_at(text, position)
            if not is_joined(previous, current, tables):
                starts[count] = position
                count += 1
            previous = current
            position += size
    if count <= BLOCK_WORDS:
        starts[count] = end
        return count
    return count - 1


def is_joined(first: np.int64, second: np.int64, tables: BpeTables) -> bool:
    """Whether a merge can join two characters, or an unknown one makes that possible."""
    if tables.unknown[0] <= FUSE_UNKNOWN:
        unknown = (tables.character_ids[first] < 0) + (tables.character_ids[second] < 0)
        if unknown > tables.unknown[0]:
            return True
    mask = len(tables.joined) - 1
    key = int(first << CHARACTER_BITS | second)
    slot = hashed(key) & mask
    while tables.joined[slot] != EMPTY:
        if tables.joined[slot] == key:
            return True
        slot = (slot + 1) & mask
    return False


def encode_words(num_words: int, tables: BpeTables, state: EncoderState, total: int) -> int:
    """Append the ids of the words in `state.starts`; gives the new total, CANNOT_ENCODE if a word fails."""
    text = state.text
    for number in range(num_words):
        begin, end = state.starts[number], state.starts[number + 1]
        if end - begin > np.uint64(MAX_KEY_BYTES):
            total = encode_word(begin, end, tables, state, total)
            if total < 0:
                return CANNOT_ENCODE
            continue
        size = end - begin
        low = load_word(text, begin) & tables.key_masks[size]
        high = load_word(text, begin + np.uint64(8)) & tables.key_masks[size + np.uint64(16)]
        high |= size << np.uint64(56)
        first, entry = find_entry(state.cache, low, high)
        if entry < 0:
            before = total
            total = encode_word(begin, end, tables, state, total)
            if total < 0:
                return CANNOT_ENCODE
            if total - before <= MAX_CACHED_IDS:
                store(state, (first, low, high), before, total)
            continue
        total += emit(state.cache, entry, state.ids, total)
    return total


def emit(cache: NDArray[np.uint64], entry: int, ids: NDArray[np.uint32], total: int) -> int:
    """Append the ids of an entry of the cache; gives their number."""
    values = cache[entry + 2] >> COUNT_BITS
    count = int(np.int64(cache[entry + 2] & COUNT_MASK))
    ids[total] = np.uint32(values & ID_MASK)
    ids[total + 1] = np.uint32((values >> ID_BITS) & ID_MASK)
    if count > 2:
        ids[total + 2] = np.uint32(values >> (ID_BITS + ID_BITS))
        values = cache[entry + 3]
        ids[total + 3] = np.uint32(values & ID_MASK)
        ids[total + 4] = np.uint32((values >> ID_BITS) & ID_MASK)
        ids[total + 5] = np.uint32(values >> (ID_BITS + ID_BITS))
    return count


def load_word(text: NDArray[np.uint8], position: np.uint64) -> np.uint64:
    """Eight bytes, the first one lowest; LLVM makes one load of them."""
    return (
        np.uint64(text[position])
        | np.uint64(text[position + np.uint64(1)]) << np.uint64(8)
        | np.uint64(text[position + np.uint64(2)]) << np.uint64(16)
        | np.uint64(text[position + np.uint64(3)]) << np.uint64(24)
        | np.uint64(text[position + np.uint64(4)]) << np.uint64(32)
        | np.uint64(text[position + np.uint64(5)]) << np.uint64(40)
        | np.uint64(text[position + np.uint64(6)]) << np.uint64(48)
        | np.uint64(text[position + np.uint64(7)]) << np.uint64(56)
    )


def find_entry(cache: NDArray[np.uint64], low: np.uint64, high: np.uint64) -> tuple[int, int]:
    """The first entry that a key may have in the cache, and the one that it has; EMPTY if it has none."""
    num_entries = len(cache) // WORDS_PER_ENTRY - NUM_PROBES
    mixed = (low ^ (high * KEY_MULTIPLIERS[1])) * KEY_MULTIPLIERS[0]
    first = int((np.int64(mixed >> np.uint64(33)) & (num_entries - 1)) * WORDS_PER_ENTRY)
    for entry in range(first, first + NUM_PROBES * WORDS_PER_ENTRY, WORDS_PER_ENTRY):
        if cache[entry] == low and cache[entry + 1] == high:
            return first, entry
    return first, EMPTY


def store(state: EncoderState, key: tuple[int, np.uint64, np.uint64], begin: int, end: int) -> None:
    """Put a word into the cache, in the first free entry or, if all are taken, in the place of another word."""
    cache, ids = state.cache, state.ids
    first, low, high = key
    entry = first + (end - begin) % NUM_PROBES * WORDS_PER_ENTRY
    for each in range(first, first + NUM_PROBES * WORDS_PER_ENTRY, WORDS_PER_ENTRY):
        if cache[each + 1] == np.uint64(0):
            entry = each
            break
    packed = (np.uint64(0), np.uint64(0))
    for half in range(2):
        value = np.uint64(0)
        for place in range(3):
            number = begin + 3 * half + place
            if number < end:
                value |= np.uint64(ids[number]) << (np.uint64(place) * ID_BITS)
        packed = (value, packed[0])
    cache[entry] = low
    cache[entry + 1] = high
    cache[entry + 2] = packed[1] << COUNT_BITS | np.uint64(end - begin)
    cache[entry + 3] = packed[0]
