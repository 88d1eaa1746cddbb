"""Text to token ids and back, by the `tokenizers` library reading tokenizer.json as it stands.

transformers rewrites some pipelines when it loads them (Llama 2's, in 5.x: other ids for text that begins with a
space), so the ids of this project are those of tokenizer.json itself. Its hash, and a canary text with its ids,
travel with every block store, and whoever reads the store checks them.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from tokenizers import Tokenizer

from pretraining.cli.errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
CANARY_TEXT = "  Ünïcode \u2019quotes\u2019, 1,234.5 €\n\n\tI wanna go </s> 東京 🚆 end "


@dataclass(frozen=True)
class TokenRules:
    """Which control tokens surround a document in the blocks."""

    bos_token_id: int | None
    eos_token_id: int


class DocumentTokenizer:
    """A tokenizer.json, the special tokens its folder names, and the rule for BOS and EOS."""

    def __init__(self, folder: Path, *, name: str, add_bos: bool, flag: str) -> None:
        self.name = name
        self._place = f"{flag} {name}"
        self.folder = folder
        content = (folder / "tokenizer.json").read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._tokenizer = Tokenizer.from_str(content.decode("utf-8"))
        self._tokenizer.no_truncation()  # transformers saves these two with the file: documents would be cut and padded
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # a text that contains "</s>" is text, it cannot end a document
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        special_tokens = read_special_tokens(folder)
        self.rules = TokenRules(
            bos_token_id=self._special_id(special_tokens, "bos_token") if add_bos else None,
            eos_token_id=self._special_id(special_tokens, "eos_token"),
        )

    def _special_id(self, special_tokens: dict[str, str], role: str) -> int:
        token = special_tokens.get(role)
        token_id = self._tokenizer.token_to_id(token) if token is not None else None
        if token_id is None:
            raise UserError(
                f"{self._place}: names no {role} that its tokenizer.json knows (found {token!r}); "
                f"set {role} in its tokenizer_config.json"
            )
        return token_id

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text as the model sees it: BOS if the rules say so, the text, EOS."""
        before = [] if self.rules.bos_token_id is None else [self.rules.bos_token_id]
        after = [self.rules.eos_token_id]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(before + encoding.ids + after, dtype=np.uint32) for encoding in encodings]

    def canary(self) -> dict[str, Any]:
        """A text with hard places and its ids, for whoever reads the blocks to check their tokenizer by."""
        ids = self._tokenizer.encode(CANARY_TEXT, add_special_tokens=False).ids
        return {"text": CANARY_TEXT, "ids": ids}


def load_document_tokenizer(name: str, *, add_bos: bool, flag: str = "--tokenizer") -> DocumentTokenizer:
    """Open a tokenizer folder or Hub id.

    Raises:
        UserError: when there is no such folder or Hub repository, or it holds no readable tokenizer.json.
    """
    folder = Path(name) if Path(name).is_dir() else _download(name)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{flag} {name}: the folder has no tokenizer.json; make one with train_tokenizer.py")
    try:
        return DocumentTokenizer(folder, name=name, add_bos=add_bos, flag=flag)
    except UserError:
        raise
    except Exception as error:  # `tokenizers` raises bare Exception for a file it cannot read
        raise UserError(
            f"{flag} {name}: its tokenizer.json or tokenizer_config.json cannot be read ({error})"
        ) from None


def _download(hub_id: str) -> Path:
    """The folder of the Hub cache that holds the tokenizer's files."""
    try:
        path = Path(hf_hub_download(hub_id, "tokenizer.json"))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--tokenizer {hub_id}: is no folder, and the Hub does not give it ({reason})") from None
    for file_name in TOKENIZER_FILES[1:]:
        try:
            hf_hub_download(hub_id, file_name)
        except EntryNotFoundError:
            continue  # newer repositories keep everything in tokenizer_config.json
    return path.parent


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Text of bos_token, eos_token and so on, as the folder's JSON files name them."""
    special_tokens: dict[str, str] = {}
    for file_name in reversed(TOKENIZER_FILES[1:]):  # tokenizer_config.json has the last word
        path = folder / file_name
        for role, token in (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}).items():
            if role.endswith("_token"):
                text = token.get("content") if isinstance(token, dict) else token
                if isinstance(text, str):
                    special_tokens[role] = text
    return special_tokens
