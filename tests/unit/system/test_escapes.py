"""Text of others acts on nothing: no terminal, no log, no page of Markdown."""

import io
import unicodedata

import markdown_it
import pytest

from pretraining.system.escapes import escape, escape_on_terminal, markdown_block, markdown_code, markdown_text

CONTROLS = [chr(number) for number in [*range(0x20), *range(0x7F, 0xA0)]]
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
HOSTILE = [
    "\x1b]0;owned\x07",
    "\x1b]52;c;cm0gLXJm\x07",
    "\x1b[2J\x1b[31m",
    "\x9b31m",
    "a\nerror: forged",
    "a\rb",
    "\u202egnp.exe",
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("character", [*CONTROLS, *BIDI, "\u2028", "\u2029", "\ud800"])
def test_each_control_character_is_written_out(character: str) -> None:
    escaped = escape(f"a{character}b")
    assert escaped == f"a\\x{ord(character):02x}b" if ord(character) < 256 else f"a\\u{ord(character):04x}b"
    assert escape(escaped) == escaped
    escaped.encode()


def test_text_of_any_language_stays() -> None:
    text = "Amílcar 日本語 עברית العربية 👩‍👩‍👧 e\u0301 n\u00adb \\x1b"
    assert escape(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_keeps_lines_and_tabs_alone_and_a_file_everything(text: str) -> None:
    shown = escape_on_terminal(f"{text}\n\tend", Terminal())
    assert shown.endswith("\n\tend")
    assert not [one for one in shown if unicodedata.category(one) in ("Cc", "Cf") and one not in "\n\t"]
    assert escape_on_terminal(text, io.StringIO()) == text


@pytest.mark.parametrize(
    "text",
    [*HOSTILE, "<script>alert(1)</script>", "a|b", "![x](http://a/b.png)", "[x](javascript:a)", "www.evil.com", "`x`",
     "http://evil.com/a", "a@evil.com", "*bold* _it_", "# h", "\n\n# heading", "$x$", "&lt;"],
)  # fmt: skip
def test_markdown_shows_the_characters(text: str) -> None:
    assert not any(link in markdown_text(text) for link in ("://", "www.", "@")), "linked without any brackets"
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    (_, inline, _) = parser.parse(f"a {markdown_text(text)} b")[:3]
    assert {token.type for token in inline.children} <= {"text", "text_special", "entity"}, inline.children
    assert "".join(token.content for token in inline.children) == f"a {escape(text)} b"
    (_, inline, _) = parser.parse(f"a {markdown_code(text)} b")[:3]
    assert [token.type for token in inline.children] == ["text", "code_inline", "text"]
    assert inline.children[1].content == escape(text)
    (block,) = parser.parse(markdown_block(f"{text}\n```\n", language="bash"))
    assert (block.type, block.info) == ("fence", "bash")
    assert block.content.rstrip("\n") == escape(f"{text}\n```\n", keep="\n\t").rstrip("\n")
