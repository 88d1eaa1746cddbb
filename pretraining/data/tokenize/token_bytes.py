"""Decode ids to bytes by a table of the bytes of each token.

Decoders of the Llama family concatenate the bytes of the tokens, whether tokens are written as bytes (Llama 3, GPT-2)
or with U+2581 for a space (Llama 2). The table decodes 100 million tokens/s on one core, the library 3.5 million on
two, and each byte has its token.
"""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from tokenizers import Tokenizer

from pretraining.data.tokenize.reference import read_special_tokens
from pretraining.errors import UserError

NO_TEXT = b"\xff"  # bytes of a control token; UTF-8 has no such byte
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
KNOWN_STEPS = {"ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip"}


@dataclass(frozen=True, slots=True)
class TokenText:
    """The bytes of tokens: token i has those from `bounds[i]` up to `bounds[i + 1]`."""

    data: np.ndarray
    bounds: np.ndarray


class TokenBytes:
    """The bytes of each token of the tokenizer in `folder`.

    `drops_first_space`: the decoder removes a space at the beginning of a document, which the encoder added.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "tokenizer.json"
        content = orjson.loads(self._path.read_bytes())
        self._steps = _steps_of(content["decoder"])
        self.drops_first_space = any(_drops_first_space(step) for step in self._steps)
        specials = set(read_special_tokens(folder).values())
        model = content["model"]["vocab"]  # in a unigram model a list of tokens and scores
        vocab = dict(model) if isinstance(model, dict) else {token: i for i, (token, _) in enumerate(model)}
        vocab |= {token["content"]: token["id"] for token in content["added_tokens"]}
        specials |= {token["content"] for token in content["added_tokens"] if token["special"]}
        table = [b""] * (max(vocab.values()) + 1)
        for token, number in vocab.items():
            table[number] = NO_TEXT if token in specials else _bytes_of(token, self._steps)
        bounds = np.cumsum([0, *map(len, table)], dtype=np.int64)
        buffers = [None, pa.py_buffer(bounds), pa.py_buffer(b"".join(table))]
        # From buffers, since pa.array imports pandas, which takes longer than everything else here.
        self._table = pa.Array.from_buffers(pa.large_binary(), len(table), buffers)

    def check(self, ids: Sequence[int]) -> None:
        """Compare with the library on `ids`, those of a text with difficult characters.

        Raises:
            UserError: when the decoder does more than concatenate bytes.
        """
        steps = [step["type"] for step in self._steps]
        ours = self.join(np.array(ids)).data.tobytes().replace(NO_TEXT, b"")
        ours = ours.removeprefix(b" ") if self.drops_first_space else ours
        theirs = Tokenizer.from_file(str(self._path)).decode(list(ids), skip_special_tokens=True)
        if not all(map(_is_known, self._steps)) or ours.decode(errors="replace") != theirs:
            raise UserError(
                f"{self._path}: its decoder ({', '.join(steps) or 'none'}) does not concatenate the bytes of tokens, "
                "so text cannot be found by them; search the input files instead"
            )

    def lengths(self) -> np.ndarray:
        """The bytes of text of each token, int64 of shape [vocabulary]; 0 for control tokens."""
        every = self.join(np.arange(len(self._table)))
        is_text = np.append(0, np.cumsum(every.data != NO_TEXT[0]))
        return np.diff(is_text[every.bounds])

    def join(self, ids: np.ndarray) -> TokenText:
        """The concatenated bytes of `ids`."""
        buffers = [None, pa.py_buffer(np.ascontiguousarray(ids))]
        taken = self._table.take(pa.Array.from_buffers(pa.from_numpy_dtype(ids.dtype), len(ids), buffers))
        _, bounds, data = taken.buffers()
        return TokenText(np.frombuffer(data, np.uint8), np.frombuffer(bounds, np.int64)[: len(ids) + 1])


def text_of(data: bytes) -> str:
    """Text of token bytes, without control tokens, and with U+FFFD for a character that was cut."""
    return data.replace(NO_TEXT, b"").decode("utf-8", errors="replace")


def _steps_of(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    if decoder is None:
        return []
    return list(decoder["decoders"]) if decoder["type"] == "Sequence" else [decoder]


def _is_known(step: dict[str, Any]) -> bool:
    return step["type"] in KNOWN_STEPS and (step["type"] != "Replace" or "String" in step["pattern"])


def _drops_first_space(step: dict[str, Any]) -> bool:
    if step["type"] == "Strip":
        return step["start"] > 0
    return step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never"


def _bytes_of(token: str, steps: Sequence[dict[str, Any]]) -> bytes:
    r"""The bytes of one token after the steps of a decoder.

    >>> _bytes_of("ĠZÃ¼rich", [{"type": "ByteLevel"}]), _bytes_of("<0xF0>", [{"type": "ByteFallback"}])
    (b' Z\xc3\xbcrich', b'\xf0')
    """
    for step in steps:
        if step["type"] == "ByteLevel":
            try:
                return codecs.charmap_encode(token, "strict", BYTES)[0]
            except UnicodeEncodeError:  # an added token with other characters
                return token.encode()
        if step["type"] == "ByteFallback" and BYTE_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        if step["type"] == "Replace" and "String" in step["pattern"]:
            token = token.replace(step["pattern"]["String"], step["content"])
        if step["type"] == "Metaspace":
            token = token.replace(step["replacement"], " ")
    return token.encode()


def _byte_characters() -> dict[str, int]:
    """GPT-2's table of byte-level BPE: the byte of each character; printable ones are themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_characters()
BYTES = {ord(character): byte for character, byte in BYTE_OF.items()}  # as the codec wants it
