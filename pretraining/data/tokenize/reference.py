"""Open a tokenizer.json as `tokenizers` does, with the special tokens of its folder."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from tokenizers import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json: its content, and its tokenizer."""

    pipeline: dict[str, Any]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; takes 0.1 s for 32,000 tokens, in which no other thread has Python's lock.

        Raises:
            Exception: when `tokenizers` cannot use the file.
        """
        return open_pipeline(self.pipeline)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id. The library takes 0.03 s to list all of them, of each start."""
        vocab = self.pipeline["model"]["vocab"]  # of Unigram a list, in the order of the ids
        ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        return max([*ids, *self.tokenizer.get_added_tokens_decoder()]) + 1

    @cached_property
    def current_pipeline(self) -> dict[str, Any]:
        """The content, in the form that `tokenizers` writes today."""
        model, pre_tokenizer = self.pipeline["model"], self.pipeline.get("pre_tokenizer") or {}
        merges = model.get("merges") or [[]]
        is_current = "type" in model and (pre_tokenizer.get("type") != "Metaspace" or "prepend_scheme" in pre_tokenizer)
        if is_current and isinstance(merges[0], str) and not merges[0].startswith("#version"):
            merges = [merge.split(" ") for merge in merges]
            return {**self.pipeline, "model": {**model, "merges": merges}}
        if is_current and isinstance(merges[0], list):
            return self.pipeline
        pipeline: dict[str, Any] = orjson.loads(self.tokenizer.to_str())
        pipeline["model"]["vocab"] = model["vocab"]  # of two tokens of one id, the text of a tokenizer has one
        return pipeline


def open_reference(content: bytes, special_tokens: dict[str, str]) -> Tokenizer:
    """The tokenizer of a tokenizer.json, for which the name of a control token is text."""
    return open_pipeline(read_pipeline(content, special_tokens))


def read_pipeline(content: bytes, special_tokens: dict[str, str]) -> dict[str, Any]:
    """The content of a tokenizer.json, without what makes ids random or a control token of plain text."""
    pipeline: dict[str, Any] = orjson.loads(content)  # twice as fast as json, of which a start notices 0.1 s
    pipeline["model"]["dropout"] = None  # some are saved with it: ids would be random
    for token in pipeline.get("added_tokens", []):
        if token["content"] in special_tokens.values():
            token["special"] = True  # some files have EOS as an ordinary added token, which text would become
    return pipeline


def open_pipeline(pipeline: dict[str, Any]) -> Tokenizer:
    """The tokenizer of the content of a tokenizer.json."""
    tokenizer = Tokenizer.from_str(orjson.dumps(pipeline).decode("utf-8"))
    tokenizer.no_truncation()  # transformers saves truncation and padding with the file
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # a text that contains "</s>" is text, it cannot end a document
    return tokenizer


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Text of bos_token, eos_token etc. from the folder's JSON files."""
    special_tokens: dict[str, str] = {}
    for file_name in reversed(TOKENIZER_FILES[1:]):  # tokenizer_config.json has priority
        path = folder / file_name
        for role, token in (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}).items():
            if role.endswith("_token"):
                text = token.get("content") if isinstance(token, dict) else token
                if isinstance(text, str):
                    special_tokens[role] = text
    return special_tokens


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text, without control tokens."""
    return tokenizer.encode(text, add_special_tokens=False).ids
