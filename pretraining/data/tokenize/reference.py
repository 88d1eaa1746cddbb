"""Open a tokenizer.json as `tokenizers` does, with the special tokens of its folder."""

import json
from pathlib import Path

import orjson
from tokenizers import Tokenizer

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def open_reference(content: bytes, special_tokens: dict[str, str]) -> Tokenizer:
    """The tokenizer of a tokenizer.json, for which the name of a control token is text."""
    pipeline = orjson.loads(content)  # twice as fast as json, of which a start notices 0.1 s
    pipeline["model"]["dropout"] = None  # some are saved with it: ids would be random
    for token in pipeline.get("added_tokens", []):
        if token["content"] in special_tokens.values():
            token["special"] = True  # some files have EOS as an ordinary added token, which text would become
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
