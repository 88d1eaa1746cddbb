"""What must not leave this machine: no log and no record shows a secret, and nothing that is pushed an absolute path.

A secret is known by its name (--hub_token, WANDB_API_KEY=, "api_key":), by its form (hf_..., //user:password@), or as
the value of a variable of this process that has such a name.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

MASK = "***"
NAME = r"[\w.-]*(?:token|key|secret|passwo?r?d|passphrase|pwd|credentials?|authorization|auth)"
SECRET_NAME = re.compile(NAME, re.IGNORECASE)
VALUE = r"""'[^']*'?|"[^"]*"?|\\"[^"]*\\"|[^\s'"&,;)}\]]+"""
# A name with its value, as in a shell (`wandb_api_key=...`), a URL (`?token=...`) or JSON (`"api_key": "..."`).
NAMED = re.compile(rf"""(?<![\w-])({NAME}=|\\?["']{NAME}\\?["']\s*:\s*)({VALUE})""", re.IGNORECASE)
SHAPES = re.compile(
    r"""(?<=//)[^\s/?#'"]+(?=@)                            # user and password of a URL
    | \b(?:hf|api_org)_\w{6,}                              # Hugging Face
    | \b(?:gh[oprsu]|github_pat)_\w{16,} | \bglpat-[\w-]{16,}  # GitHub, GitLab
    | \bwandb_v\d_\w+ | \bsk-[\w-]{16,} | \bxox[abeprs]-[\w-]+ | \bAKIA[0-9A-Z]{16}\b
    | \beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+                    # a JSON web token
    | (?<=\bBearer\ )\S+ | (?<=\bBasic\ )\S+               # a header of HTTP""",
    re.VERBOSE,
)
SHORTEST_VALUE = 8  # characters of a variable's value that is looked for: `KEY=1` would mask every 1
# An absolute path in a text, of two names at least: neither a part of a URL nor "tokens/s".
PATH = re.compile(r"""(?<![\w.:/~@])(?:/[^\s/'"<>|:;,()\[\]{}`]+){2,}/?""")


def mask(text: str) -> str:
    """`text` with *** for each secret in it.

    >>> mask("pip install --index-url https://me:hunter2@host/simple wandb_api_key=abc")
    'pip install --index-url https://***@host/simple wandb_api_key=***'
    """
    for value in _values_of_variables():
        text = text.replace(value, MASK)
    return NAMED.sub(rf"\g<1>{MASK}", SHAPES.sub(MASK, text))


def _values_of_variables() -> Iterator[str]:
    for name in filter(_is_secret_name, os.environ):
        value = os.environ.get(name, "")
        if len(value) >= SHORTEST_VALUE and not value.startswith("/"):  # as of PWD
            yield value


@cache
def _is_secret_name(name: str) -> bool:
    return bool(SECRET_NAME.fullmatch(name))


def mask_all(value: Any) -> Any:
    """A value of JSON with *** for each secret in it."""
    if isinstance(value, dict):
        return {
            name: MASK if content and _is_secret(name, content) else mask_all(content)
            for name, content in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask_all(item) for item in value]
    return mask(value) if isinstance(value, str) else value


def _is_secret(name: Any, content: Any) -> bool:
    return isinstance(name, str) and isinstance(content, str | dict | list) and bool(SECRET_NAME.fullmatch(name))


def mask_words(words: Sequence[str]) -> list[str]:
    """The words of a command line with *** for each secret, whatever spaces and quotes it has."""
    masked, follows_name = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if follows_name and not word.startswith("--"):
            masked.append(MASK)
            continue
        is_named = bool(SECRET_NAME.fullmatch(name))
        follows_name = is_named and not equals and word.startswith("-")
        masked.append(f"{name}={MASK}" if is_named and equals else _mask_word(word))
    return masked


def _mask_word(word: str) -> str:
    """A word, which can be JSON."""
    if word.lstrip()[:1] in ("{", "["):
        try:
            return json.dumps(mask_all(json.loads(word)), ensure_ascii=False)
        except (ValueError, RecursionError):
            return mask(word)
    return mask(word)


def hide_paths(text: str) -> str:
    """`text` with its absolute paths relative to the working directory, or as the last name of those elsewhere.

    >>> hide_paths("resumed from /data/jane/runs/a/checkpoint-5 at 3 tokens/s, see https://host/a/b")
    'resumed from checkpoint-5 at 3 tokens/s, see https://host/a/b'
    """
    here = f"{Path.cwd()}/"
    if len(here) > 2:  # not /, which begins every path
        text = text.replace(here, "")
    return PATH.sub(lambda found: Path(found[0]).name, text)


def hide_path(path: str | Path) -> str:
    """A path relative to the working directory, or its last name, whatever spaces it has; others are as given."""
    given = Path(path)
    if not given.is_absolute():
        return str(path)
    here = Path.cwd()
    return str(given.relative_to(here)) if given.is_relative_to(here) and here != Path("/") else given.name


def hide_path_of_word(word: str) -> str:
    """A word of a command line, which can be a path or NAME=PATH."""
    prefix, equals, path = word.rpartition("=") if "=/" in word else ("", "", word)
    return f"{prefix}{equals}{hide_path(path)}" if path.startswith("/") else hide_paths(word)


def hide_paths_of_command(command: str) -> str:
    """A command line without absolute paths."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote is missing
        return hide_paths(command)
    return shlex.join(map(hide_path_of_word, words))
