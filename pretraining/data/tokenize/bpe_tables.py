"""Tables of a tokenizer.json for `bpe_words` and `bpe_merges`, or why it cannot be encoded by them.

Supported is BPE whose pieces are found by merges alone: without a pre-tokenizer, or with Metaspace, as Llama 2,
Mistral and TinyLlama. What is not known here is refused, so that another backend takes over.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pretraining.data.tokenize.bpe_merges import (
    BYTES_OF_UNKNOWN,
    DROP_UNKNOWN,
    EMPTY,
    FUSE_UNKNOWN,
    KEEP_UNKNOWN,
    BpeTables,
    hashed,
)
from pretraining.data.tokenize.bpe_words import CHARACTER_BITS

NUM_CHARACTERS = 0x110000
NUM_ASCII = 128
SPACE = " "


class UnsupportedError(Exception):
    """What of a tokenizer.json is not supported, in a few words."""


@dataclass(frozen=True)
class TextRules:
    """How a text becomes the characters that are merged: `space` replaces spaces, `prefix` is put before the text.

    `doubles_prefix`: also before a text that begins with it. `splits`: a word ends before each `space`.
    """

    space: str = SPACE
    prefix: str = ""
    doubles_prefix: bool = True
    splits: bool = False

    def prefix_of(self, text: str) -> bytes:
        """What is put before a text, with spaces that are not replaced yet; its first character decides."""
        if not text or not self.prefix:
            return b""
        if not self.doubles_prefix and text[0] in (self.space, SPACE):
            return b""
        return self.prefix_bytes

    @property
    def prefix_bytes(self) -> bytes:
        """The prefix of a text that gets one, with spaces that are not replaced yet."""
        return b" " if self.prefix == self.space else self.prefix.encode()

    def add_prefixes(self, data: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """Put the prefix of each text into the bytes before it in `data`; gives where the texts begin now."""
        prefix = np.frombuffer(self.prefix_bytes, np.uint8)
        chosen = np.ones(len(begins), bool)
        if not self.doubles_prefix:
            for space in (SPACE, self.space):
                chosen &= ~begins_with(data, begins, space.encode())
        begins = begins - len(prefix) * chosen
        for place, byte in enumerate(prefix):
            data[begins[chosen] + place] = byte
        return begins


def begins_with(data: np.ndarray, begins: np.ndarray, prefix: bytes) -> np.ndarray:
    """Whether each text, after which more bytes follow than the prefix has, begins with it."""
    return np.all([data[begins + place] == byte for place, byte in enumerate(prefix)], axis=0)


def read_rules(pipeline: dict[str, Any]) -> TextRules:
    """The rules of a tokenizer.json.

    Raises:
        UnsupportedError: when it has others.
    """
    normalizer, pre_tokenizer = pipeline.get("normalizer"), pipeline.get("pre_tokenizer")
    if pre_tokenizer is not None:
        return _metaspace(normalizer, pre_tokenizer)
    steps = [normalizer]
    if normalizer is not None and normalizer["type"] == "Sequence":
        steps = normalizer["normalizers"]
    space, prefix = SPACE, ""
    for step in filter(None, steps):
        if step["type"] == "Prepend" and not prefix and space == SPACE:
            prefix = step["prepend"]
        elif step["type"] == "Replace" and step["pattern"] == {"String": SPACE} and space == SPACE:
            space = step["content"]
            prefix = prefix.replace(SPACE, space)
        else:
            raise UnsupportedError(f"the normalizer {step['type']}")
    if len(space) != 1 or len(prefix) > 1:
        raise UnsupportedError("a normalizer that writes more than one character")
    return TextRules(space, prefix)


def _metaspace(normalizer: dict[str, Any] | None, pre_tokenizer: dict[str, Any]) -> TextRules:
    if normalizer is not None or pre_tokenizer["type"] != "Metaspace":
        raise UnsupportedError(f"the pre-tokenizer {pre_tokenizer['type']}")
    space = pre_tokenizer["replacement"]
    if space == SPACE:
        raise UnsupportedError("a replacement of spaces that is a space")
    prefix = "" if pre_tokenizer["prepend_scheme"] == "never" else space
    return TextRules(space, prefix, doubles_prefix=False, splits=pre_tokenizer.get("split", True))


def check_model(pipeline: dict[str, Any]) -> None:
    """Check that merges alone decide.

    Raises:
        UnsupportedError: when something else does.
    """
    model = pipeline["model"]
    if model["type"] != "BPE":
        raise UnsupportedError(f"the model {model['type']}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(name):
            raise UnsupportedError(f"{name} {model[name]}")
    if any(not token["special"] for token in pipeline.get("added_tokens", [])):
        raise UnsupportedError("added tokens that are not special")
    vocab = model["vocab"]
    if "" in vocab or len(set(vocab.values())) < max(1, len(vocab)):
        raise UnsupportedError("a vocabulary that is empty, or has an empty token or two of one id")
    if max(vocab.values()) >= 1 << 31:
        raise UnsupportedError("an id of more than 31 bits")


def build_tables(pipeline: dict[str, Any], rules: TextRules, fill_merges: Any) -> BpeTables:
    """The tables of a tokenizer.json; `fill_merges` is the function of `bpe_merges`, compiled or not.

    Raises:
        UnsupportedError: when unknown characters or spaces take part in merges in a way that is not supported.
    """
    vocab, pairs = pipeline["model"]["vocab"], pipeline["model"]["merges"]
    unknown, byte_ids = _unknown_rules(pipeline["model"])
    merges = np.array([vocab[piece] for a, b in pairs for piece in (a, b, a + b)], np.int64).reshape(-1, 3)
    is_unknown = np.zeros(max(vocab.values()) + 1, bool)
    is_unknown[[number for number in (unknown[1], *byte_ids) if number != EMPTY]] = True
    if is_unknown[merges[:, :2]].any():
        raise UnsupportedError("merges of unknown characters")
    table = np.full(4 << max(1, len(pairs)).bit_length(), EMPTY, np.int64)
    ranks = np.arange(len(merges))
    fill_merges(merges[:, 0] << 32 | merges[:, 1], ranks << 32 | merges[:, 2], table)
    character_ids = np.full(NUM_CHARACTERS, EMPTY, np.int32)
    for token, number in vocab.items():
        if len(token) == 1:
            character_ids[ord(token)] = number
    if rules.splits and unknown[0] == DROP_UNKNOWN and any(right[0] == rules.space for _, right in pairs):
        raise UnsupportedError("merges across the start of a word, which an unknown character lets happen")
    if rules.space != SPACE:
        character_ids[ord(SPACE)] = character_ids[ord(rules.space)]
        if character_ids[ord(SPACE)] < 0:
            raise UnsupportedError("a space that is not a token")
    joined = np.array(sorted(_joined_pairs(pairs, rules)), np.int64).reshape(-1, 2)
    return BpeTables(
        character_ids=character_ids,
        ascii_cuts=_ascii_cuts(joined, character_ids, unknown[0]),
        joined=_joined_set(joined),
        merges=table,
        byte_ids=byte_ids,
        unknown=unknown,
        key_masks=_key_masks(),
    )


def _unknown_rules(model: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What an unknown character becomes, as `BpeTables` has it."""
    vocab = model["vocab"]
    byte_ids = np.array([vocab.get(f"<0x{byte:02X}>", EMPTY) for byte in range(256)], np.int32)
    unknown_id = vocab.get(model.get("unk_token"), EMPTY)
    if model.get("byte_fallback"):
        if (byte_ids < 0).any():
            raise UnsupportedError("byte_fallback without all bytes")
        return np.array([BYTES_OF_UNKNOWN, unknown_id]), byte_ids
    if model.get("unk_token") is None:
        return np.array([DROP_UNKNOWN, EMPTY]), np.full(256, EMPTY, np.int32)
    if unknown_id < 0:
        raise UnsupportedError("an unk_token that is not a token")
    kind = FUSE_UNKNOWN if model.get("fuse_unk") else KEEP_UNKNOWN
    return np.array([kind, unknown_id]), np.full(256, EMPTY, np.int32)


def _joined_pairs(merges: list[list[str]], rules: TextRules) -> set[tuple[int, int]]:
    """The pairs of characters between which a merge can happen, spaces as they are in a text."""
    pairs = {(ord(pair[0]), ord(pair[1])) for pair in {left[-1] + right[0] for left, right in merges}}
    space = ord(rules.space)
    if rules.splits:
        pairs = {(left, right) for left, right in pairs if right != space}
    if rules.space == SPACE:
        return pairs
    forms = {number: (number,) for pair in pairs for number in pair} | {space: (space, ord(SPACE)), ord(SPACE): ()}
    return {(a, b) for left, right in pairs for a in forms[left] for b in forms[right]}


def _ascii_cuts(joined: np.ndarray, character_ids: np.ndarray, kind: int) -> np.ndarray:
    """The table of `BpeTables`."""
    cuts = np.ones((NUM_ASCII, 2 * NUM_ASCII), np.uint8)
    ascii_pairs = joined[(joined < NUM_ASCII).all(axis=1)]
    cuts[ascii_pairs[:, 1], ascii_pairs[:, 0]] = 0
    if kind <= FUSE_UNKNOWN:
        unknown = (character_ids[:NUM_ASCII] < 0).astype(np.int64)
        cuts[:, :NUM_ASCII][(unknown[:, None] + unknown[None]) > kind] = 0
    return cuts.reshape(-1)


def _joined_set(joined: np.ndarray) -> np.ndarray:
    """An open-addressing hash set of the pairs, at most a quarter full."""
    table = [int(EMPTY)] * (4 << max(1, len(joined)).bit_length())
    for key in (joined[:, 0] << CHARACTER_BITS | joined[:, 1]).tolist():
        slot = hashed(key) & (len(table) - 1)
        while table[slot] != EMPTY:
            slot = (slot + 1) & (len(table) - 1)
        table[slot] = key
    return np.array(table, np.int64)


def _key_masks() -> np.ndarray:
    """For a word of n bytes the bits of its first 8 bytes at n, those of the next 8 at 16 + n."""
    sizes = np.arange(16)
    return np.array(
        [(1 << 8 * min(8, max(0, size - skipped))) - 1 for skipped in (0, 8) for size in sizes.tolist()], np.uint64
    )
