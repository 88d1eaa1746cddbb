"""Divide texts into words and look them up in a cache, as loops that `system.compiled` compiles.

A text is cut where no merge can join two characters. So words are encoded independently, and nearly all are cached.
"""

from typing import NamedTuple

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
from pretraining.system.compiled.words import load_word

SHORT_BYTES = 15  # of a word in the first cache; the 16th byte of its key is its length
SHORT_ENTRY = 4  # uint64: two of key, two of three ids each
SHORT_IDS = 6
LONG_BYTES = 31
LONG_KEY = 4
LONG_ENTRY = 8
LONG_IDS = 12
IDS_PER_VALUE = 3
NUM_PROBES = 4
ID_BITS = np.uint64(20)
ID_MASK = np.uint64((1 << 20) - 1)
COUNT_BITS = np.uint64(4)
COUNT_MASK = np.uint64(15)
KEY_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))
BLOCK_WORDS = 1024  # which are found before the first one is looked up
CHARACTER_BITS = 21
NO_CONTROL = -1


class Documents(NamedTuple):
    """Where in the text documents begin and end, how many ids each has, and the ids before and after it.

    `lengths` is output. `control` [2] has BOS and EOS, NO_CONTROL without one.
    """

    begins: NDArray[np.uint64]
    ends: NDArray[np.uint64]
    lengths: NDArray[np.int64]
    control: NDArray[np.int64]


def encode_batch(documents: Documents, tables: BpeTables, state: EncoderState) -> int:
    """Encode the documents; gives the number of ids, or CANNOT_ENCODE.

    32 bytes must follow the last text; `state.ids` has space for one id per byte, two per document, and 12 more.
    """
    total = 0
    for document in range(len(documents.lengths)):
        before = total
        total = append(documents.control[0], state.ids, total)
        position, end = documents.begins[document], documents.ends[document]
        while position < end:
            num_words = find_words(position, end, tables, state)
            total = encode_words(num_words, tables, state, total)
            if total < 0:
                return CANNOT_ENCODE
            position = state.starts[num_words]
        total = append(documents.control[1], state.ids, total)
        documents.lengths[document] = total - before
    return total


def append(control: np.int64, ids: NDArray[np.uint32], total: int) -> int:
    """Append a control token, if it is one; gives the new total."""
    if control == NO_CONTROL:
        return total
    ids[total] = np.uint32(control)
    return total + 1


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
        unknown = int(tables.character_ids[first] < 0) + int(tables.character_ids[second] < 0)
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
        if end - begin > np.uint64(SHORT_BYTES):
            total = encode_long_word(begin, end, tables, state, total)
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
            if total - before <= SHORT_IDS:
                entry = free_entry(state.cache, first, SHORT_ENTRY, total)
                state.cache[entry], state.cache[entry + 1] = low, high
                store_ids(state.cache, entry + 2, state.ids, before, total)
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


def find_entry(cache: NDArray[np.uint64], low: np.uint64, high: np.uint64) -> tuple[int, int]:
    """The first entry that a key may have in the cache, and the one that it has; EMPTY if it has none."""
    num_entries = len(cache) // SHORT_ENTRY - NUM_PROBES
    mixed = (low ^ (high * KEY_MULTIPLIERS[1])) * KEY_MULTIPLIERS[0]
    first = int((np.int64(mixed >> np.uint64(33)) & (num_entries - 1)) * SHORT_ENTRY)
    for entry in range(first, first + NUM_PROBES * SHORT_ENTRY, SHORT_ENTRY):
        if cache[entry] == low and cache[entry + 1] == high:
            return first, entry
    return first, EMPTY


def free_entry(cache: NDArray[np.uint64], first: int, entry_size: int, number: int) -> int:
    """The first free entry of those that a key may have, or one that is taken, by `number`."""
    for entry in range(first, first + NUM_PROBES * entry_size, entry_size):
        if cache[entry + entry_size // 2 - 1] == np.uint64(0):
            return entry
    return first + number % NUM_PROBES * entry_size


def store_ids(cache: NDArray[np.uint64], place: int, ids: NDArray[np.uint32], begin: int, end: int) -> None:
    """Put their number and ids into an entry of a cache, three per value."""
    count = end - begin
    for start in range(0, max(count, 1), IDS_PER_VALUE):
        value = np.uint64(0)
        for number in range(min(IDS_PER_VALUE, count - start) - 1, -1, -1):
            value = value << ID_BITS | np.uint64(ids[begin + start + number])
        if start == 0:
            value = value << COUNT_BITS | np.uint64(count)
        cache[place + start // IDS_PER_VALUE] = value


def encode_long_word(begin: np.uint64, end: np.uint64, tables: BpeTables, state: EncoderState, total: int) -> int:
    """Append the ids of a word that is too long for the first cache; gives the new total, or CANNOT_ENCODE."""
    if end - begin > np.uint64(LONG_BYTES):
        return encode_word(begin, end, tables, state, total)
    cache = state.long_cache
    first = make_long_key(begin, end - begin, state)
    for entry in range(first, first + NUM_PROBES * LONG_ENTRY, LONG_ENTRY):
        if has_key(cache, entry, state.key):
            count = int(np.int64(cache[entry + LONG_KEY] & COUNT_MASK))
            for number in range(count):
                value = cache[entry + LONG_KEY + number // IDS_PER_VALUE]
                shift = np.uint64(number % IDS_PER_VALUE) * ID_BITS
                if number < IDS_PER_VALUE:
                    shift += COUNT_BITS
                state.ids[total + number] = np.uint32((value >> shift) & ID_MASK)
            return total + count
    new_total = encode_word(begin, end, tables, state, total)
    if 0 <= new_total <= total + LONG_IDS:
        entry = free_entry(cache, first, LONG_ENTRY, total)
        for place in range(LONG_KEY):
            cache[entry + place] = state.key[place]
        store_ids(cache, entry + LONG_KEY, state.ids, total, new_total)
    return new_total


def make_long_key(begin: np.uint64, size: np.uint64, state: EncoderState) -> int:
    """Put the bytes of a word into `state.key`, its size in the last byte; gives its first entry in the cache."""
    mixed = np.uint64(0)
    for place in range(LONG_KEY):
        start = np.uint64(8 * place)
        value = np.uint64(0)
        if size > start:
            value = load_word(state.text, begin + start)
            if size - start < np.uint64(8):
                value &= (np.uint64(1) << (np.uint64(8) * (size - start))) - np.uint64(1)
        if place == LONG_KEY - 1:
            value |= size << np.uint64(56)
        state.key[place] = value
        mixed = (mixed ^ value) * KEY_MULTIPLIERS[0]
        mixed ^= mixed >> np.uint64(32)
    num_entries = len(state.long_cache) // LONG_ENTRY - NUM_PROBES
    return int((np.int64(mixed >> np.uint64(20)) & (num_entries - 1)) * LONG_ENTRY)


def has_key(cache: NDArray[np.uint64], entry: int, key: NDArray[np.uint64]) -> bool:
    """Whether an entry of the cache of long words has a key."""
    difference = np.uint64(0)
    for place in range(LONG_KEY):
        difference |= cache[entry + place] ^ key[place]
    return bool(difference == np.uint64(0))
