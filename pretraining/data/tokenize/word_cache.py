"""Caches of words and their ids, as loops that `system.compiled` compiles: one of short words, one of longer ones.

An entry has as many values of key as of ids, which are copied whole. The last byte of its key is the number of bytes
of the ids, the one before that of the word.
"""

import numpy as np
from numpy.typing import NDArray

from pretraining.data.tokenize.bpe_merges import BpeTables, EncoderState, encode_word
from pretraining.system.compiled.words import EIGHT, ONE, THREE, TWO, WORD_BYTES, load_word, prefetch, store_word

SHORT_BYTES = np.uint64(14)
SHORT_ENTRY = 4
LONG_BYTES = np.uint64(30)
LONG_ENTRY = 8
LONG_VALUES = LONG_ENTRY // 2  # of a key, and of ids
NUM_PROBES = 4
NOT_CACHED = np.uint64(0xFFFFFFFFFFFFFFFF)
SIZE_BITS = np.uint64(48)
IDS_BITS = np.uint64(56)
KEY_MASK = np.uint64((1 << 56) - 1)
KEY_VALUES = np.uint64(3)  # of a short word in `state.keys`: two of its key, and the first entry it may have
KEY_MULTIPLIERS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


def make_keys(num_words: np.uint64, tables: BpeTables, state: EncoderState) -> None:
    """Put the keys of words, and the first entries they may have, into `state.keys`; the CPU fetches these meanwhile.

    A word that is too long for the cache of short ones has a key that no entry has.
    """
    text, starts, cache, keys, masks = state.text, state.starts, state.cache, state.keys, tables.key_masks
    entry_mask = np.uint64(len(cache) // SHORT_ENTRY - NUM_PROBES - 1)
    number = np.uint64(0)
    while number < num_words:
        begin = starts[number]
        size = min(starts[number + ONE] - begin, SHORT_BYTES + ONE)
        low = load_word(text, begin) & masks[size]
        high = load_word(text, begin + EIGHT) & masks[size + np.uint64(16)] | size << SIZE_BITS
        mixed = (low ^ (high * KEY_MULTIPLIERS[1])) * KEY_MULTIPLIERS[0]
        entry = (mixed >> np.uint64(33) & entry_mask) * np.uint64(SHORT_ENTRY)
        prefetch(cache, entry)
        keys[number * KEY_VALUES] = low
        keys[number * KEY_VALUES + ONE] = high
        keys[number * KEY_VALUES + TWO] = entry
        number += ONE


def append_cached(number: np.uint64, num_words: np.uint64, state: EncoderState, place: int) -> tuple[np.uint64, int]:
    """Append the ids of words up to the first that is not in the cache of short ones; gives its number and the place.

    Apart from the work on other words, so that LLVM keeps in registers what this loop needs: 15 % faster.
    """
    ids, cache, keys = state.ids, state.cache, state.keys
    while number < num_words:
        place_of_key = number * KEY_VALUES
        entry = find_entry(cache, keys[place_of_key], keys[place_of_key + ONE], keys[place_of_key + TWO])
        if entry == NOT_CACHED:
            break
        store_word(ids, np.uint64(place), cache[entry + TWO])
        store_word(ids, np.uint64(place) + EIGHT, cache[entry + THREE])
        place += int(np.int64(cache[entry + ONE] >> IDS_BITS))
        number += ONE
    return number, place


def find_entry(cache: NDArray[np.uint64], low: np.uint64, high: np.uint64, entry: np.uint64) -> np.uint64:
    """The entry that a key has in the cache, the given one or one of the next; NOT_CACHED if it has none."""
    for _ in range(NUM_PROBES):
        if cache[entry] == low and cache[entry + ONE] & KEY_MASK == high:
            return entry
        entry += np.uint64(SHORT_ENTRY)
    return NOT_CACHED


def encode_uncached(number: np.uint64, tables: BpeTables, state: EncoderState, place: int) -> int:
    """Append the ids of a word that is not in the cache of short ones; gives the new place, or CANNOT_ENCODE."""
    begin, end = state.starts[number], state.starts[number + ONE]
    if end - begin > LONG_BYTES:
        return encode_word(begin, end, tables, state, place)
    if end - begin > SHORT_BYTES:
        return append_long(begin, end - begin, tables, state, place)
    new_place = encode_word(begin, end, tables, state, place)
    first = int(np.int64(state.keys[number * KEY_VALUES + TWO]))
    entry = free_entry(state.cache, first, SHORT_ENTRY, int(np.int64(begin)))
    if keep_ids(state.cache, entry, SHORT_ENTRY, state.ids, place, new_place):
        state.cache[entry] = state.keys[number * KEY_VALUES]
        state.cache[entry + 1] |= state.keys[number * KEY_VALUES + ONE]
    return new_place


def append_long(begin: np.uint64, size: np.uint64, tables: BpeTables, state: EncoderState, place: int) -> int:
    """Append the ids of a word of at most LONG_BYTES; gives the new place, or CANNOT_ENCODE."""
    cache = state.long_cache
    first = make_long_key(begin, size, state)
    for entry in range(first, first + NUM_PROBES * LONG_ENTRY, LONG_ENTRY):
        if has_key(cache, entry, state.long_key):
            for value in range(LONG_VALUES):
                store_word(state.ids, np.uint64(place + WORD_BYTES * value), cache[entry + LONG_VALUES + value])
            return place + int(np.int64(cache[entry + LONG_VALUES - 1] >> IDS_BITS))
    new_place = encode_word(begin, begin + size, tables, state, place)
    entry = free_entry(cache, first, LONG_ENTRY, int(np.int64(begin)))
    if keep_ids(cache, entry, LONG_ENTRY, state.ids, place, new_place):
        for value in range(LONG_VALUES - 1):
            cache[entry + value] = state.long_key[value]
        cache[entry + LONG_VALUES - 1] |= state.long_key[LONG_VALUES - 1]
    return new_place


def free_entry(cache: NDArray[np.uint64], first: int, entry_size: int, number: int) -> int:
    """The first free entry of those that a key may have, or one that is taken, by `number`."""
    for entry in range(first, first + NUM_PROBES * entry_size, entry_size):
        if cache[entry + entry_size // 2 - 1] == np.uint64(0):
            return entry
    return first + number % NUM_PROBES * entry_size


def keep_ids(
    cache: NDArray[np.uint64], entry: int, entry_size: int, ids: NDArray[np.uint8], begin: int, end: int
) -> bool:
    """Put the ids from `begin` to `end` and their size into an entry; False if they are too many, or missing."""
    num_values = entry_size // 2
    if end < begin or end - begin > num_values * WORD_BYTES:
        return False
    for value in range(num_values):
        cache[entry + num_values + value] = load_word(ids, np.uint64(begin + WORD_BYTES * value))
    cache[entry + num_values - 1] = np.uint64(end - begin) << IDS_BITS
    return True


def make_long_key(begin: np.uint64, size: np.uint64, state: EncoderState) -> int:
    """Put the bytes of a word and its size into `state.long_key`; gives its first entry in the cache."""
    mixed = np.uint64(0)
    for place in range(LONG_VALUES):
        start = np.uint64(WORD_BYTES * place)
        value = np.uint64(0)
        if size > start:
            value = load_word(state.text, begin + start)
            if size - start < EIGHT:
                value &= (np.uint64(1) << (EIGHT * (size - start))) - np.uint64(1)
        if place == LONG_VALUES - 1:
            value |= size << SIZE_BITS
        state.long_key[place] = value
        mixed = (mixed ^ value) * KEY_MULTIPLIERS[0]
        mixed ^= mixed >> np.uint64(32)
    num_entries = len(state.long_cache) // LONG_ENTRY - NUM_PROBES
    return int((np.int64(mixed >> np.uint64(20)) & (num_entries - 1)) * LONG_ENTRY)


def has_key(cache: NDArray[np.uint64], entry: int, key: NDArray[np.uint64]) -> bool:
    """Whether an entry of the cache of long words has a key."""
    difference = cache[entry + LONG_VALUES - 1] & KEY_MASK ^ key[LONG_VALUES - 1]
    for place in range(LONG_VALUES - 1):
        difference |= cache[entry + place] ^ key[place]
    return bool(difference == np.uint64(0))
