"""Tokenizers without a pre-tokenizer, for tests of the compiled backend."""

import itertools
import json

from tokenizers import Tokenizer

from pretraining.data.tokenize.reference import TokenizerFile, read_pipeline
from tests.conftest import PROJECT_DIR

SPACE = "▁"
SAMPLE = PROJECT_DIR / "data/sample/tokenizer/tokenizer.json"


def make_tokenizer(merges: list[tuple[str, str]], alphabet: str, **options: object) -> Tokenizer:
    """BPE with these merges, the bytes of other characters, and Llama 2's normalizer, or as `options` say.

    `first_id`: the id of the first token.
    """
    first_id = options.pop("first_id", 0)
    names = [f"<0x{byte:02X}>" for byte in range(256)] if options.get("byte_fallback", True) else []
    pieces = ["<unk>", *names, *dict.fromkeys([SPACE, *alphabet, *(a + b for a, b in merges)])]
    llama = [{"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {piece: number for number, piece in enumerate(pieces, first_id)},
        "merges": merges,
    }
    pipeline = {
        "version": "1.0",
        "normalizer": options.pop("normalizer", {"type": "Sequence", "normalizers": llama}),
        "pre_tokenizer": options.pop("pre_tokenizer", None),
        "added_tokens": options.pop("added_tokens", []),
        "model": model | options,
    }
    return from_pipeline(pipeline)


def from_pipeline(pipeline: dict) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(pipeline))
    tokenizer.encode_special_tokens = True
    return tokenizer


def opened(tokenizer: Tokenizer) -> TokenizerFile:
    """A tokenizer as its file is opened."""
    return TokenizerFile(read_pipeline(tokenizer.to_str().encode(), {}))


def small(**options: object) -> Tokenizer:
    """Merges of every kind among a few characters: at both ends, of runs, in conflict with each other."""
    merges = [("a", "b"), ("b", "c"), ("c", "a"), ("a", "a"), ("aa", "aa"), ("ab", "c"), (SPACE, "a"), ("é", "a")]
    merges += [(SPACE, SPACE), (SPACE, "ab"), ("bc", "a"), ("b", "é"), ("東", "京"), ("\n", "\n"), ("b", "bc")]
    return make_tokenizer(merges, "abcé東京\n", **options)


def everything_joins(**options: object) -> Tokenizer:
    """Each pair of characters is a token, in an order that mixes them, and so are many longer pieces."""
    alphabet = SPACE + "abcde"
    pairs = [a + b for a, b in itertools.product(alphabet, repeat=2)]
    pairs = pairs[::5] + pairs[1::5] + pairs[2::5] + pairs[3::5] + pairs[4::5]
    merges = [(pair[0], pair[1]) for pair in pairs]
    merges += [(a, b) for number, a in enumerate(pairs) for b in pairs[number % 7 :: 7]]
    return make_tokenizer(merges, "abcde", **options)


def byte_level_merges() -> Tokenizer:
    """The sample tokenizer's merges, of GPT-2's kind, without its pre-tokenizer: other characters are dropped."""
    pipeline = json.loads(SAMPLE.read_text(encoding="utf-8"))
    return from_pipeline(pipeline | {"pre_tokenizer": None, "normalizer": None, "post_processor": None})


def chain(length: int) -> Tokenizer:
    """Characters that join the next one only, the last ones first: the end of a word decides how it begins."""
    alphabet = "".join(chr(0x4E00 + number) for number in range(length))
    return make_tokenizer(list(zip(alphabet[-2::-1], alphabet[:0:-1], strict=True)), alphabet)


METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
VOCABULARIES = {
    "small": small,
    "everything joins": everything_joins,
    "byte-level merges": byte_level_merges,
    "no normalizer": lambda: small(normalizer=None),
    "Metaspace": lambda: small(normalizer=None, pre_tokenizer=METASPACE),
    "Metaspace, first": lambda: small(normalizer=None, pre_tokenizer=METASPACE | {"prepend_scheme": "first"}),
    "Metaspace, never": lambda: small(normalizer=None, pre_tokenizer=METASPACE | {"prepend_scheme": "never"}),
    "Metaspace in one piece": lambda: small(normalizer=None, pre_tokenizer=METASPACE | {"split": False}),
    "fused unknown": lambda: small(byte_fallback=False),
    "single unknown": lambda: small(byte_fallback=False, fuse_unk=False),
    "dropped unknown": lambda: small(byte_fallback=False, unk_token=None),
}
