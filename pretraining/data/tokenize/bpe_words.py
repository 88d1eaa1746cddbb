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
    hashed,
    put_id,
)
from pretraining.data.tokenize.word_cache import append_cached, encode_uncached, make_keys
from pretraining.system.compiled.words import EIGHT, ONE, SEVEN, WORD_BYTES, load_word

BLOCK_WORDS = 256  # which are found before the first one is looked up
MAX_WORDS = BLOCK_WORDS + WORD_BYTES  # as a whole step may go beyond
PAIR_MASK = np.uint64(0xFFFF)
HIGH_BITS = np.uint64(0x8080808080808080)
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
    """Encode the documents; gives the number of bytes of their ids, or CANNOT_ENCODE.

    32 bytes must follow the last text; `state.ids` has space for one id per byte, two per document, and 32 bytes.
    """
    place = 0
    for document in range(len(documents.lengths)):
        before = place
        place = append(documents.control[0], state, place)
        position, end = documents.begins[document], documents.ends[document]
        while position < end:
            num_words = find_words(position, end, tables, state)
            place = encode_words(num_words, tables, state, place)
            if place < 0:
                return CANNOT_ENCODE
            position = state.starts[num_words]
        place = append(documents.control[1], state, place)
        documents.lengths[document] = (place - before) // state.id_bytes
    return place


def append(control: np.int64, state: EncoderState, place: int) -> int:
    """Append a control token, if it is one; gives the new place."""
    return place if control == NO_CONTROL else put_id(control, state, place)


def find_words(position: np.uint64, end: np.uint64, tables: BpeTables, state: EncoderState) -> np.uint64:
    """Put the starts of about BLOCK_WORDS words, and the end of the last, into `state.starts`; gives their number."""
    text, starts, cuts = state.text, state.starts, tables.ascii_cuts
    starts[0] = position
    count = ONE
    previous, size = character_at(text, position)
    position += size
    while position < end and count <= np.uint64(BLOCK_WORDS):
        word = load_word(text, position)
        if previous < 128 and position + EIGHT <= end and word & HIGH_BITS == np.uint64(0):
            pairs = word << np.uint64(8) | np.uint64(previous)
            for step in range(WORD_BYTES - 1):
                starts[count] = position + np.uint64(step)
                count += np.uint64(cuts[(pairs >> np.uint64(8 * step)) & PAIR_MASK])
            starts[count] = position + SEVEN
            count += np.uint64(cuts[word >> np.uint64(48)])
            previous = np.int64(word >> np.uint64(56))
            position += EIGHT
        else:
            current, size = character_at(text, position)
            starts[count] = position
            count += np.uint64(not is_joined(previous, current, tables))
            previous = current
            position += size
    if count <= np.uint64(BLOCK_WORDS):
        starts[count] = end
        return count
    return count - ONE


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


def encode_words(num_words: np.uint64, tables: BpeTables, state: EncoderState, place: int) -> int:
    """Append the ids of the words in `state.starts`; gives the new place, CANNOT_ENCODE if a word fails."""
    make_keys(num_words, tables, state)
    number = np.uint64(0)
    while True:
        number, place = append_cached(number, num_words, state, place)
        if number == num_words:
            return place
        place = encode_uncached(number, tables, state, place)
        if place < 0:
            return CANNOT_ENCODE
        number += ONE
