"""Convert the tokenizer files of other tools to a tokenizer.json that gives the same ids.

`vocab.json` and `merges.txt` are those of GPT-2 (also under Megatron's names), `tokenizer.model` is that of
SentencePiece, or Llama 3's file of tiktoken. A tokenizer.json whose configuration names no EOS gets the one that
transformers reads from its class, or that of the model's configuration. Nothing of these files is executed.
"""

import base64
import binascii
import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from pretraining.data.tokenize.sentencepiece import sentencepiece_tokenizer
from pretraining.errors import UserError, reading
from pretraining.system.files import cache_dir, write_atomically
from pretraining.system.locks import wait_for_lock

logger = logging.getLogger(__name__)

GPT2_FILES = (("vocab.json", "merges.txt"), ("gpt2-vocab.json", "gpt2-merges.txt"))
MODEL_NAME = "tokenizer.model"
MODEL_CONFIGS = ("generation_config.json", "config.json")
OTHER_TOOLS_FILES = (*GPT2_FILES[0], MODEL_NAME, *MODEL_CONFIGS)  # what a repository of the Hub may have
GPT2_END = "<|endoftext|>"
# The file has no names of control tokens. These are those of llama_models/llama3/tokenizer.py, by their ids after the
# ranks; pretraining uses only the first two, and the size of the vocabulary.
LLAMA3_RANKS = 128_000
LLAMA3_CONTROLS = ("<|begin_of_text|>", "<|end_of_text|>")
LLAMA3_RESERVED = 254
SAVE_COMMAND = "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW)"
ROLES = ("unk_token", "bos_token", "eos_token")
CONVERSION = 2  # of this module; another number makes new files in the cache

SpecialTokens = dict[str, str]
Converted = tuple[Tokenizer, SpecialTokens]


def converted_folder(folder: Path, special_tokens: Mapping[str, str], *, place: str) -> Path | None:
    """A folder with tokenizer.json and tokenizer_config.json for the files in `folder`; None if it has none of them.

    It is in the cache of this machine, by the hash of the files. `special_tokens`, those that the configuration of
    `folder` names, have priority.

    Raises:
        UserError: naming `place`, when the files cannot be converted exactly.
    """
    found = _find(folder)
    if found is None:
        return None
    convert, paths = found
    config = folder / "tokenizer_config.json"
    names = " and ".join(path.name for path in paths)
    with reading(f"{place}: {names}", remedy="copy the files there again"):
        content = [path.read_bytes() for path in (*paths, *([config] if config.is_file() else []))]
        made = _cached(content, lambda: convert(paths, _class_settings(folder), place), special_tokens)
    logger.info("%s: converted %s to tokenizer.json", place, names)
    return made


def with_default_eos(folder: Path, special_tokens: Mapping[str, str]) -> Path:
    """A copy of the tokenizer.json in `folder` with the EOS of its class or model; `folder` if none is known."""
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_str(text)
    defaults = _class_defaults(folder)
    if "eos_token" not in defaults and (token := _configured_eos(folder, tokenizer)) is not None:
        defaults["eos_token"] = token
    defaults = {role: token for role, token in defaults.items() if tokenizer.token_to_id(token) is not None}
    if "eos_token" not in defaults:
        return folder
    logger.info("EOS is %s, the default of this tokenizer's class or model", defaults["eos_token"])
    return _cached([text.encode(), json.dumps(defaults).encode()], lambda: (text, defaults), special_tokens)


def _find(folder: Path) -> tuple[Callable[[list[Path], dict[str, Any], str], Converted], list[Path]] | None:
    for names in GPT2_FILES:
        paths = [folder / name for name in names]
        if all(path.is_file() for path in paths):
            return _gpt2, paths
    path = folder / MODEL_NAME
    return (_model, [path]) if path.is_file() else None


def _cached(
    content: list[bytes], make: Callable[[], tuple[Tokenizer | str, SpecialTokens]], named: Mapping[str, str]
) -> Path:
    digest = hashlib.sha256(f"{CONVERSION} {tokenizers.__version__} {sorted(named.items())}".encode())
    for part in content:
        digest.update(hashlib.sha256(part).digest())
    folder = cache_dir() / "pretraining" / "tokenizers" / digest.hexdigest()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(folder.with_suffix(".lock")):  # the processes of mpirun make the same folder
            if not (folder / "tokenizer.json").is_file():
                _write(folder, *make(), named)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
        ) from None
    return folder


def _write(folder: Path, tokenizer: Tokenizer | str, defaults: SpecialTokens, named: Mapping[str, str]) -> None:
    roles = {**defaults, **named}
    text = tokenizer if isinstance(tokenizer, str) else _with_specials(tokenizer, roles)
    config = {**roles, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    folder.mkdir(exist_ok=True)
    write_atomically(folder / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
    write_atomically(folder / "tokenizer.json", text.encode("utf-8"))  # last: it makes the folder complete


def _with_specials(tokenizer: Tokenizer, roles: Mapping[str, str]) -> str:
    """The tokenizer.json in which the tokens with a role are control tokens; none is new."""
    known = sorted({token for token in roles.values() if tokenizer.token_to_id(token) is not None})
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in known])
    return str(tokenizer.to_str(pretty=False)) + "\n"


def _class_settings(folder: Path) -> dict[str, Any]:
    """The tokenizer_config.json of the folder, which may name another class of tokenizer; empty without one."""
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _check_class(settings: dict[str, Any], name: str, place: str) -> None:
    """Reject a tokenizer of another class, whose files mean something else."""
    found = settings.get("tokenizer_class")
    if found not in (None, name, f"{name}Fast"):
        raise UserError(
            f"{place}: its tokenizer_config.json names {found}, and only {name} is converted; save tokenizer.json by "
            f"transformers: {SAVE_COMMAND}"
        )


def _gpt2(paths: list[Path], settings: dict[str, Any], place: str) -> Converted:
    """GPT-2's byte-level BPE, as GPT2Tokenizer of transformers builds it."""
    _check_class(settings, "GPT2Tokenizer", place)
    vocab, merges = models.BPE.read_file(str(paths[0]), str(paths[1]))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer, dict.fromkeys(ROLES, GPT2_END) if GPT2_END in vocab else {}


def _model(paths: list[Path], settings: dict[str, Any], place: str) -> Converted:
    """A tokenizer.model of SentencePiece or tiktoken; its content decides which."""
    content = paths[0].read_bytes()
    if (ranks := _read_ranks(content)) is not None:
        return _tiktoken(ranks, paths[0], place)
    _check_class(settings, "LlamaTokenizer", place)
    return sentencepiece_tokenizer(content, place=place, remedy=f"save tokenizer.json by transformers: {SAVE_COMMAND}")


def _tiktoken(ranks: dict[bytes, int], path: Path, place: str) -> Converted:
    """Llama 3's tokenizer; the files of others look alike, but split text at other places."""
    if len(ranks) != LLAMA3_RANKS:
        raise UserError(
            f"{place}: its {MODEL_NAME} has {len(ranks):,} ranks of tiktoken, and only Llama 3's {LLAMA3_RANKS:,} are "
            f"converted; save tokenizer.json by transformers: {SAVE_COMMAND}"
        )
    from transformers.convert_slow_tokenizer import TikTokenConverter  # 0.6 s

    class Converter(TikTokenConverter):  # the package `tiktoken` would only read the file
        def load_tiktoken_bpe(self, _: str) -> dict[bytes, int]:
            return ranks

    controls = [*LLAMA3_CONTROLS, *(f"<|reserved_special_token_{number}|>" for number in range(LLAMA3_RESERVED))]
    tokenizer = Converter(str(path)).converted()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in controls])
    return tokenizer, {"bos_token": controls[0], "eos_token": controls[1]}


def _read_ranks(content: bytes) -> dict[bytes, int] | None:
    """The tokens of a file of tiktoken, lines of base64 and rank; None if it is another kind of file."""
    try:
        pairs = [line.split() for line in content.splitlines() if line]
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs} or None
    except (ValueError, binascii.Error):
        return None


def _class_defaults(folder: Path) -> SpecialTokens:
    """The control tokens that AutoTokenizer gives; none if it cannot open the folder."""
    from transformers import AutoTokenizer  # imports torch: 1.3 s

    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        logger.debug("AutoTokenizer cannot open %s: %s", folder, error)
        return {}
    return {role: token for role in ROLES if isinstance(token := getattr(loaded, role, None), str)}


def _configured_eos(folder: Path, tokenizer: Tokenizer) -> str | None:
    """The token of `eos_token_id` in the model's configuration, the first if there are several."""
    for name in MODEL_CONFIGS:
        path = folder / name
        found = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
        first = found[0] if isinstance(found, list) and found else found
        if type(first) is int and first >= 0 and (token := tokenizer.id_to_token(first)) is not None:
            return str(token)
    return None
