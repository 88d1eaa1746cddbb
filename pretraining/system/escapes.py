"""Foreign text where some characters have a meaning: on a terminal, in a log, in Markdown, in a code block.

A document, a file name or what a model writes can hold escape sequences that set the title of a terminal, write its
clipboard or forge a line of a log, and characters that reverse the text after them. Files of data keep every character.
"""

import html
import re
from typing import TextIO

# C0, DEL and C1 controls; line and paragraph separators; what changes the direction of text; half of a surrogate pair.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LAYOUT = "\n\t"  # what text of several lines keeps
MARKDOWN = re.compile(r"[\\`*_\[\]|~$]")
LINKS = re.compile(r"(?<=:)//|(?<=www)\.|@")  # what GitHub and the Hub make links of without any brackets
BACKTICKS = re.compile("`+")


def escape(text: str, *, keep: str = "") -> str:
    r"""`text` with each control character as \xNN or \uNNNN, those of `keep` aside.

    >>> escape("a\x1b]0;b\x07\n")
    'a\\x1b]0;b\\x07\\x0a'
    """
    return CONTROLS.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def escape_on_terminal(text: str, stream: TextIO) -> str:
    """`text` as it is for a file or pipe; on a terminal escaped, its line breaks and tabs aside."""
    return escape(text, keep=LAYOUT) if stream.isatty() else text


def markdown_text(text: str) -> str:
    """`text` as a reader of Markdown sees it, in one line: no link, no HTML, no column of a table."""
    marked = MARKDOWN.sub(r"\\\g<0>", html.escape(escape(text), quote=False))
    return LINKS.sub(lambda found: "".join(f"&#{ord(character)};" for character in found[0]), marked)


def markdown_code(text: str) -> str:
    """`text` as inline code, in one line, whatever backticks it has."""
    fence = _fence(text, shortest=1)
    padding = " " if "`" in text else ""
    return f"{fence}{padding}{escape(text)}{padding}{fence}"


def markdown_block(text: str, *, language: str) -> str:
    """`text` as a block of code, which no backticks in it end."""
    fence = _fence(text, shortest=3)
    return f"{fence}{language}\n{escape(text, keep=LAYOUT)}\n{fence}"


def _fence(text: str, *, shortest: int) -> str:
    """More backticks than `text` has in a row."""
    longest = max((len(found) for found in BACKTICKS.findall(text)), default=0)
    return "`" * max(shortest, longest + 1 if longest else 0)
