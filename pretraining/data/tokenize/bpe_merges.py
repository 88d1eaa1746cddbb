"""Byte-pair encoding of a word of any length, as loops that `system.compiled` compiles.

A long word is encoded in windows. Tokens are the encoding of a text if and only if each two neighbors are the encoding
of their text: the first merge across a boundary would also happen when only the two neighbors are encoded.

Indexes into bytes are unsigned, which saves Numba a comparison per access. Together with signed numbers they would
become a float.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PAIR_MULTIPLIERS = (0x2545F491, 0x1B873593)
EMPTY = -1
NO_MERGE = 1 << 62
FIRST_WINDOW = 64  # symbols; a word that fits is encoded at once
LAST_WINDOW = 4096
DROP_UNKNOWN, FUSE_UNKNOWN, KEEP_UNKNOWN, BYTES_OF_UNKNOWN = 0, 1, 2, 3
CANNOT_ENCODE = -1


class BpeTables(NamedTuple):
    """What all threads read. Sizes of hash tables are powers of two."""

    character_ids: NDArray[np.int32]  # [0x110000] token of a character alone, EMPTY without one
    ascii_joined: NDArray[np.uint8]  # [128 * 128] 1 where a merge can join the characters
    joined: NDArray[np.int64]  # set of first << 21 | second, for all characters
    merges: NDArray[np.int64]  # pairs of left << 32 | right and rank << 32 | id
    byte_ids: NDArray[np.int32]  # [256] tokens of the bytes of unknown characters
    unknown: NDArray[np.int64]  # [2] what an unknown character becomes, and the id of the unknown token
    key_masks: NDArray[np.uint64]  # [32] bytes of the two halves of a key that belong to a word of n bytes


class EncoderState(NamedTuple):
    """What one thread reads and writes: its texts and their ids, its cache, and space for one window."""

    text: NDArray[np.uint8]
    ids: NDArray[np.uint32]
    cache: NDArray[np.uint64]
    starts: NDArray[np.uint64]  # first bytes of words, and the end of the last one
    symbols: NDArray[np.int64]  # [LAST_WINDOW + 8] ids of a window
    offsets: NDArray[np.uint64]  # [LAST_WINDOW + 9] their first bytes, and the end
    pairs: NDArray[np.int64]  # [LAST_WINDOW + 8] rank << 32 | id of the merge of each symbol with the next


def encode_word(begin: np.uint64, end: np.uint64, tables: BpeTables, state: EncoderState, total: int) -> int:
    """Append the ids of a word of any length; gives the new total, CANNOT_ENCODE if no window can be cut."""
    window = FIRST_WINDOW
    while window <= LAST_WINDOW:
        new_total = encode_in_windows(begin, end, window, tables, state, total)
        if new_total >= 0:
            return new_total
        window *= 4
    return CANNOT_ENCODE


def encode_in_windows(
    begin: np.uint64, end: np.uint64, window: int, tables: BpeTables, state: EncoderState, total: int
) -> int:
    """Append the ids of a word, `window` symbols at a time; gives the new total, CANNOT_ENCODE at the first failure."""
    while True:
        count = encode_window(begin, end, window, tables, state)
        is_last = state.offsets[count] == end
        accepted = count if is_last else count - count // 4
        while True:
            for number in range(accepted):
                state.ids[total + number] = np.uint32(state.symbols[number])
            if is_last:
                return total + accepted
            following = state.offsets[accepted]
            if can_cut(accepted, end, window, tables, state):
                break
            encode_window(begin, end, window, tables, state)
            accepted -= 1
            if accepted <= count // 2:
                return CANNOT_ENCODE
        total += accepted
        begin = following


def can_cut(accepted: int, end: np.uint64, window: int, tables: BpeTables, state: EncoderState) -> bool:
    """Whether the last accepted token of a window and the first one after it are the encoding of their text."""
    before, cut = state.offsets[accepted - 1], state.offsets[accepted]
    if before == cut:  # bytes of one character
        return False
    left = state.symbols[accepted - 1]
    encode_window(cut, end, window, tables, state)
    right, after = state.symbols[0], state.offsets[1]
    count = encode_window(before, after, LAST_WINDOW, tables, state)
    is_same = state.symbols[0] == left and state.symbols[1] == right
    return count == 2 and is_same and state.offsets[1] == cut and state.offsets[2] == after


def encode_window(begin: np.uint64, end: np.uint64, window: int, tables: BpeTables, state: EncoderState) -> int:
    """Encode at most `window` symbols; gives the number of tokens in `state.symbols`, from `state.offsets` on."""
    count = read_symbols(begin, end, window, tables, state)
    symbols, pairs = state.symbols, state.pairs
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
        merge_at(place, count, tables, state)
    return count


def merge_at(place: int, count: int, tables: BpeTables, state: EncoderState) -> None:
    """Merge a symbol with the next one, after which there are `count`."""
    symbols, offsets, pairs = state.symbols, state.offsets, state.pairs
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


def read_symbols(begin: np.uint64, end: np.uint64, window: int, tables: BpeTables, state: EncoderState) -> int:
    """Put the tokens of characters into `state.symbols`, `window` of them, or up to 3 more where a character ends."""
    text, kind = state.text, int(tables.unknown[0])
    count = 0
    in_unknown = False
    position = begin
    while position < end:
        character, size = character_at(text, position)
        token = np.int64(tables.character_ids[character])
        if count >= window and not (in_unknown and token < 0):
            break
        if token >= 0:
            state.symbols[count] = token
            state.offsets[count] = position
            count += 1
        elif kind == BYTES_OF_UNKNOWN:
            for number in range(size):
                state.symbols[count] = tables.byte_ids[text[position + np.uint64(number)]]
                state.offsets[count] = position
                count += 1
        elif kind == KEEP_UNKNOWN or (kind == FUSE_UNKNOWN and not in_unknown):
            state.symbols[count] = tables.unknown[1]
            state.offsets[count] = position
            count += 1
        in_unknown = bool(token < 0) and kind <= FUSE_UNKNOWN
        position += size
    state.offsets[count] = position
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
