"""Plain technical English: words and phrases to avoid in documents, help texts, messages, docstrings and names.

`python -m pytest tests/test_language.py -k data` checks what has "data" in its path.
"""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT_DIR

FOLDERS = ("pretraining", "tools", "benchmarks", "docs", "recipes")
SUFFIXES = {".py", ".md", ".yaml", ".html", ".sh", ".json", ".toml", ".txt"}
# From Python 3.12 on an f-string has separate tokens.
TEXT_TOKENS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
# Pattern, in upper or lower case: what to write instead.
PHRASES = {
    r"\b(go|goes|going|went|gone) on\b": "resume, continue",
    r"\b(said|says|saying|say)\b": "log, print, report, describe",
    r"\b(told|tells?|telling)\b": "report, store, pass",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bis no (?!longer|more\b)(?-i:[a-z])": "is not a",
    r"\banew\b": "again",
    r"\bof (its|their|his|her|your|our) own\b": "own, separate",
    r"\bno number\b": "NaN",
    r"\bso (many|long|few)\b": "N",
    r"\bstand(s|ing)?\b(?! for| in for)|\bstood\b": "is, are, appears",
    r"\bleaves? (it|them|the flag|that|this) out\b": "remove it",
    r"\bset(s|ting)? aside\b": "renamed to",
    r"\bHub does not (give|take)\b": "not found on the Hub; the Hub rejects",
    r"\b(rooms?|wings?|house)\b": "space; modules, packages, layout",
    r"\d ?(GB|MB|kB|s|ms|bytes|hours?) an? [a-zA-Z]": "per",
    r"\b(GB|MB|kB|bytes|tokens|seconds|tokens/s) an? (GPU|rank|document|process|step|block|token|second)\b": "per",
    r"\bbesides\b": "also; in addition",
    r"\b(at|from|to) (the|its|their) begin\b|\bthe begin of\b": "beginning, start",
    r"\bbegun\b": "started",
    r"\beverybody\b": "standard, everyone",
    r"\bwithout a word\b": "silently",
    r"\bfor ever\b": "forever",
    r"\bills\b": "faults, problems",
    r"[;,:] give (?!up|back|the same)\b|\bgive --": "use, pass, set",
    r", as (?:[0-9a-z_]+_?[0-9]|`?[0-9.]+`?)[,;. )\n]": "e.g.",
    r"\bmakes? way\b": "frees its slot",
    r"\bas if it had not been\b": "identical to an uninterrupted run",
    r"\b(in|with) vain\b": "without success",
}
NAMES = r"\b_?(said|told|kept_by|saying)_?\w*|\w*_told\w*|\b_?(LEAST|MOST|LARGEST|SMALLEST)_\w+|\bFEWEST\w*"


def tokens_of(path: Path, text: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(text).readline)) if path.suffix == ".py" else []


def written_texts(path: Path, text: str, tokens: list[tokenize.TokenInfo]) -> Iterator[tuple[int, str]]:
    """Line numbers and texts that people read: of Python the strings and comments, of other files every line."""
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), start=1)
    for token in tokens:
        if token.type in TEXT_TOKENS:
            yield from enumerate(token.string.splitlines(), start=token.start[0])


def findings(path: Path) -> list[str]:
    """Every phrase of a file to avoid: its line, the words, and the remedy."""
    text = path.read_text(encoding="utf-8")
    tokens = tokens_of(path, text)
    texts = list(written_texts(path, text, tokens))
    together = "\r".join(text for _, text in texts)  # in one search; \r is part of no line and of no pattern
    found = []
    for pattern, instead in PHRASES.items():
        for match in re.finditer(pattern, together, re.IGNORECASE):
            line, _ = texts[together.count("\r", 0, match.start())]
            found.append(f"{line}: {match[0]!r} -> {instead}")
    names = [(token.start[0], token.string) for token in tokens if token.type == tokenize.NAME]
    return found + [f"{line}: name {name}" for line, name in names if re.fullmatch(NAMES, name)]


def files() -> list[Path]:
    nested = [path for folder in FOLDERS for path in (PROJECT_DIR / folder).rglob("*") if path.suffix in SUFFIXES]
    return sorted({*nested, *PROJECT_DIR.glob("*.py"), *PROJECT_DIR.glob("*.md")})


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PROJECT_DIR).as_posix())
def test_the_language_is_plain(path: Path) -> None:
    assert findings(path) == []
