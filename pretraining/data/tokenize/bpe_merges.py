"""Byte-pair encoding of a word of any length, as loops that `system.compiled` compiles.

A long word is encoded in windows. Tokens are the encoding of a text if and only if each two neighbors are the encoding
of their text: the first merge across a boundary would also happen when only the two neighbors are encoded.

Indexes into bytes are unsigned, which saves Numba a comparison per access. Together with signed numbers they would
become a float.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretraining.system.compiled.words import ONE, THREE, TWO

PAIR_MULTIPLIERS = (0x2545F491, 0x1B873593)
EMPTY = -1
NO_MERGE = 1 << 62
FIRST_WINDOW = 64  # symbols; a word that fits is encoded at once, the next size is 4 times this one
LAST_WINDOW = 4096
DROP_UNKNOWN, FUSE_UNKNOWN, KEEP_UNKNOWN, BYTES_OF_UNKNOWN = 0, 1, 2, 3
CANNOT_ENCODE = -1


class BpeTables(NamedTuple):
    """What all threads read. Sizes of hash tables are powers of two."""

    character_ids: NDArray[np.int32]  # [0x110000] token of a character alone, EMPTY without one
    ascii_cuts: NDArray[np.uint8]  # [128 * 256] at second << 8 | first: 1 where no merge can join the characters
    joined: NDArray[np.int64]  # set of first << 21 | second, for all characters
    merges: NDArray[np.int64]  # pairs of left << 32 | right and rank << 32 | id
    byte_ids: NDArray[np.int32]  # [256] tokens of the bytes of unknown characters
    unknown: NDArray[np.int64]  # [2] what an unknown character becomes, and the id of the unknown token
    key_masks: NDArray[np.uint64]  # [32] bytes of the two halves of a key that belong to a word of n bytes


class Window(NamedTuple):
    """Symbols that are merged, at most LAST_WINDOW and 3 more; each array has 8 more elements than that."""

    symbols: NDArray[np.int64]
    offsets: NDArray[np.uint64]  # their first bytes, and the end of the last
    pairs: NDArray[np.int64]  # rank << 32 | id of the merge of each with the next one, NO_MERGE without one


class EncoderState(NamedTuple):
    """What one thread reads and writes: its texts and their ids, its caches, and space for windows."""

    text: NDArray[np.uint8]
    ids: NDArray[np.uint8]  # each as `id_bytes` bytes, the lowest first
    id_bytes: int  # 2 or 4
    cache: NDArray[np.uint64]  # of short words
    long_cache: NDArray[np.uint64]
    keys: NDArray[np.uint64]  # of short words
    long_key: NDArray[np.uint64]  # of a long word
    starts: NDArray[np.uint64]  # first bytes of words, and the end of the last one
    tokens: Window
    pair: Window


def encode_word(begin: np.uint64, end: np.uint64, tables: BpeTables, state: EncoderState, place: int) -> int:
    """Append the ids of a word of any length; gives the new place, CANNOT_ENCODE if no window can be cut."""
    limit = FIRST_WINDOW
    while limit <= LAST_WINDOW:
        new_place = encode_in_windows(begin, end, limit, tables, state, place)
        if new_place >= 0:
            return new_place
        limit *= 4
    return CANNOT_ENCODE


def encode_in_windows(
    begin: np.uint64, end: np.uint64, limit: int, tables: BpeTables, state: EncoderState, place: int
) -> int:
    """Append the ids of a word, `limit` symbols at a time; gives the new place, CANNOT_ENCODE at the first failure."""
    tokens = state.tokens
    count = encode_window(state.text, begin, end, limit, tables, tokens)
    while tokens.offsets[count] != end:
        accepted = count - 1 - count // 8
        while True:
            if accepted <= count // 2:
                return CANNOT_ENCODE
            append(tokens, accepted, state, place)
            num_following = cut_after(accepted, end, limit, tables, state)
            if num_following > 0:
                break
            encode_window(state.text, begin, end, limit, tables, tokens)
            accepted -= 1
        place += accepted * state.id_bytes
        begin = tokens.offsets[0]
        count = num_following
    return append(tokens, count, state, place)


def append(tokens: Window, count: int, state: EncoderState, place: int) -> int:
    """Append the first tokens of a window; gives the new place."""
    for number in range(count):
        place = put_id(tokens.symbols[number], state, place)
    return place


def put_id(token: np.int64, state: EncoderState, place: int) -> int:
    """Write an id, the lowest byte first; gives the place of the next one."""
    position = np.uint64(place)
    state.ids[position] = np.uint8(token & 0xFF)
    state.ids[position + ONE] = np.uint8(token >> 8 & 0xFF)
    if state.id_bytes == 4:
        state.ids[position + TWO] = np.uint8(token >> 16 & 0xFF)
        state.ids[position + THREE] = np.uint8(token >> 24 & 0xFF)
    return place + state.id_bytes


def cut_after(accepted: int, end: np.uint64, limit: int, tables: BpeTables, state: EncoderState) -> int:
    """Encode the window after the accepted tokens of this one; gives the number of its tokens.

    CANNOT_ENCODE if the last accepted token and the first one after it are not the encoding of their text, which they
    never are within the bytes of one character.
    """
    tokens, pair = state.tokens, state.pair
    left, before, cut = tokens.symbols[accepted - 1], tokens.offsets[accepted - 1], tokens.offsets[accepted]
    count = encode_window(state.text, cut, end, limit, tables, tokens)
    right, after = tokens.symbols[0], tokens.offsets[1]
    num_tokens = encode_window(state.text, before, after, LAST_WINDOW, tables, pair)
    is_same = num_tokens == 2 and pair.symbols[0] == left and pair.symbols[1] == right
    return count if is_same and pair.offsets[1] == cut and pair.offsets[2] == after else CANNOT_ENCODE


def encode_window(
    text: NDArray[np.uint8], begin: np.uint64, end: np.uint64, limit: int, tables: BpeTables, tokens: Window
) -> int:
    """Encode about `limit` symbols into `tokens`; gives the number of tokens."""
    count = read_symbols(text, begin, end, limit, tables, tokens)
    symbols, pairs = tokens.symbols, tokens.pairs
    for number in range(count - 1):
        pairs[number] = find_merge(symbols[number], symbols[number + 1], tables.merges)
    while count > 1:
        place = 0
        for number in range(count - 1):
            if pairs[number] < pairs[place]:
                place = number
        if pairs[place] == NO_MERGE:
            break
        count -= 1
        merge_at(place, count, tables, tokens)
    return count


def merge_at(place: int, count: int, tables: BpeTables, tokens: Window) -> None:
    """Merge a symbol with the next one, after which there are `count`."""
    symbols, offsets, pairs = tokens.symbols, tokens.offsets, tokens.pairs
    symbols[place] = pairs[place] & 0xFFFFFFFF
    for number in range(place + 1, count):
        symbols[number] = symbols[number + 1]
        offsets[number] = offsets[number + 1]
        pairs[number] = pairs[number + 1]
    offsets[count] = offsets[count + 1]
    if place > 0:
        pairs[place - 1] = find_merge(symbols[place - 1], symbols[place], tables.merges)
    if place < count - 1:
        pairs[place] = find_merge(symbols[place], symbols[place + 1], tables.merges)


def read_symbols(
    text: NDArray[np.uint8], begin: np.uint64, end: np.uint64, limit: int, tables: BpeTables, tokens: Window
) -> int:
    """Put the tokens of characters into `tokens`, `limit` of them, or up to 3 more where a character ends."""
    kind = int(tables.unknown[0])
    count = 0
    in_unknown = False
    position = begin
    while position < end:
        character, size = character_at(text, position)
        token = np.int64(tables.character_ids[character])
        if count >= limit and not (in_unknown and token < 0):
            break
        if token >= 0:
            tokens.symbols[count] = token
            tokens.offsets[count] = position
            count += 1
        elif kind == BYTES_OF_UNKNOWN:
            for number in range(size):
                tokens.symbols[count] = tables.byte_ids[text[position + np.uint64(number)]]
                tokens.offsets[count] = position
                count += 1
        elif kind == KEEP_UNKNOWN or (kind == FUSE_UNKNOWN and not in_unknown):
            tokens.symbols[count] = tables.unknown[1]
            tokens.offsets[count] = position
            count += 1
        in_unknown = bool(token < 0) and kind <= FUSE_UNKNOWN
        position += size
    tokens.offsets[count] = position
    return count


def character_at(text: NDArray[np.uint8], position: np.uint64) -> tuple[np.int64, np.uint64]:
    """A character of UTF-8 and the number of its bytes."""
    first = np.int64(text[position])
    if first < 0x80:
        return first, np.uint64(1)
    second = np.int64(text[position + np.uint64(1)]) & 0x3F
    if first < 0xE0:
        return (first & 0x1F) << 6 | second, np.uint64(2)
    third = np.int64(text[position + np.uint64(2)]) & 0x3F
    if first < 0xF0:
        return (first & 0x0F) << 12 | second << 6 | third, np.uint64(3)
    fourth = np.int64(text[position + np.uint64(3)]) & 0x3F
    return (first & 0x07) << 18 | second << 12 | third << 6 | fourth, np.uint64(4)


def find_merge(left: np.int64, right: np.int64, merges: NDArray[np.int64]) -> int:
    """The rank << 32 | id of the merge of two tokens; NO_MERGE without one."""
    mask = len(merges) // 2 - 1
    key = int(left << 32 | right)
    slot = hashed(key) & mask
    while merges[2 * slot] != EMPTY:
        if merges[2 * slot] == key:
            return int(merges[2 * slot + 1])
        slot = (slot + 1) & mask
    return NO_MERGE


def fill_merges(keys: NDArray[np.int64], values: NDArray[np.int64], merges: NDArray[np.int64]) -> int:
    """Fill the empty table `merges`; of two values for a key the last one counts. Gives the number of keys."""
    mask = len(merges) // 2 - 1
    count = 0
    for number in range(len(keys)):
        slot = hashed(keys[number]) & mask
        while merges[2 * slot] != EMPTY and merges[2 * slot] != keys[number]:
            slot = (slot + 1) & mask
        count += merges[2 * slot] == EMPTY
        merges[2 * slot] = keys[number]
        merges[2 * slot + 1] = values[number]
    return count


def hashed(key: int) -> int:
    """A number of which the low bits depend on all bits of `key`."""
    return ((key & 0x7FFFFFFF) * PAIR_MULTIPLIERS[0] + (key >> 31) * PAIR_MULTIPLIERS[1]) >> 20
