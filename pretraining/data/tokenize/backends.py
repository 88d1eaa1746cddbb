"""Libraries that encode text by a tokenizer.json, and the check that they agree.

The reference is the `tokenizers` library. A fast backend must give its ids for a probe of odd texts at the start, and
for one document in a thousand while it runs.
"""

import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

PROBE_TEXTS = [
    "",
    " ",
    "a",
    " leading and trailing ",
    "  Ünïcode \u2019quotes\u2019, 1,234.5 €\n\n\tI wanna go",
    "emoji 🚆🚆 👩\u200d👩\u200d👧 🇫🇮 \ufe0f",
    "東京の電車は速い。中文测试 한국어 עברית العربية ไทย हिन्दी",
    "e\u0301 é ﬁ ① Å \u212b",
    "control \x00 \x07 \x1b \x7f \u200b \u2028 \ufeff \ufffd",
    "runs      of spaces\t\t\tand\n\n\n\nnewlines \r\n\r\n",
    "▁ U+2581 ▁▁ itself",
    "x" * 3000,
    "ab" * 1500 + " " + "0123456789" * 100,
    "CamelCase snake_case 3.14e-10 don't I'LL we've http://a.b/c?d=e&f <|x|> [INST]",
    "\n",
]
CHECKED_PER_MILLE = 1
MAX_CHECKED_CHARACTERS = 100_000  # the reference takes 1 us per character; a document of millions would stall all


@dataclass(frozen=True, slots=True)
class FlatIds:
    """Concatenated ids of several texts, uint32 or, if the vocabulary fits, uint16, and the length of each."""

    ids: np.ndarray
    lengths: np.ndarray


class Backend(Protocol):
    """Encodes texts, in which the names of control tokens are text; thread-safe."""

    name: str

    def encode(self, texts: list[str]) -> FlatIds:
        """Ids of `texts`, without any control token."""
        ...


class ReferenceBackend:
    """`tokenizers`, on all cores."""

    name = "reference"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._one_at_a_time = threading.Lock()  # it uses all cores itself, and 90 bytes of memory per byte of text

    def encode(self, texts: list[str]) -> FlatIds:
        """Ids of `texts`, without any control token."""
        with self._one_at_a_time:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
            ids = [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]
            del encodings
        return FlatIds(np.concatenate(ids) if ids else np.empty(0, np.uint32), lengths)


class FastTokensBackend:
    """`fastokens`: 50 MB/s of Llama-2 tokens on two cores of an AMD EPYC (Zen 4), the reference 5."""

    name = "fastokens"

    def __init__(self, tokenizer_json: str) -> None:
        # Imported here: it takes 20 ms to load, and not every platform has a wheel.
        from fastokens import Tokenizer as FastTokenizer

        self._tokenizer = FastTokenizer.from_json_str(tokenizer_json)

    def encode(self, texts: list[str]) -> FlatIds:
        """Ids of `texts`, without any control token."""
        ids, offsets = self._tokenizer.encode_batch_flat(texts, add_special_tokens=False, split_special_tokens=True)
        return FlatIds(np.frombuffer(ids, np.uint32), np.diff(np.frombuffer(offsets, np.uint64).astype(np.int64)))


class BackendDiffersError(Exception):
    """A fast backend gave other ids than the reference."""


class CheckedBackend:
    """A fast backend that is compared with the reference on one document in a thousand."""

    def __init__(self, fast: Backend, reference: Backend) -> None:
        self.name = fast.name
        self.fast = fast
        self._reference = reference

    def encode(self, texts: list[str]) -> FlatIds:
        """Ids of `texts`, without any control token.

        Raises:
            BackendDiffersError: when a checked text has other ids.
        """
        self.check([text for text in texts if _is_checked(text)])
        return self.fast.encode(texts)

    def check(self, texts: Sequence[str]) -> None:
        """Encode these texts by both.

        Raises:
            BackendDiffersError: when one has other ids.
        """
        check_same_ids(self.fast, self._reference, [text[:MAX_CHECKED_CHARACTERS] for text in texts])


def _is_checked(text: str) -> bool:
    """True for one text in a thousand, the same ones in every run."""
    head = zlib.crc32(text[:64].encode("utf-8"))
    return (head + len(text)) % 1000 < CHECKED_PER_MILLE


def check_same_ids(fast: Backend, reference: Backend, texts: Sequence[str]) -> None:
    """Raise `BackendDiffersError` for the first of `texts` that the two encode differently."""
    for text in texts:
        check_ids(fast.name, fast.encode([text]).ids, reference, text)


def check_ids(name: str, ids: np.ndarray, reference: Backend, text: str) -> None:
    """Raise `BackendDiffersError` if the reference encodes a text otherwise than the backend of this name, by `ids`."""
    theirs, ours = ids.tolist(), reference.encode([text]).ids.tolist()
    if theirs != ours:
        place = next((n for n, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), len(ours))
        raise BackendDiffersError(
            f"{name} gives other ids than the reference from token {place} on "
            f"({theirs[place : place + 5]}, not {ours[place : place + 5]}) for {text[:200]!r}"
        )
