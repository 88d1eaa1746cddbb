import pytest

from pretraining.data.input.documents import Document, RawLine, ReadingOptions, SkippedLine, parse_json_line, parse_row

OPTIONS = ReadingOptions(1 << 20)


def parsed(content: bytes, *, number: int = 2, options: ReadingOptions = OPTIONS) -> Document | SkippedLine:
    return parse_json_line(RawLine(number, 10, number, 10 + len(content), len(content), content), options)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\n", "blank_line"),
        (b" \t\r\n", "blank_line"),
        (b"{'text': 1}\n", "not_json"),
        (b'{"text": "cut\n', "not_json"),
        (b'{"text": "a"} {"text": "b"}\n', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"text": "\\ud800 half a pair"}\n', "lone_surrogate"),
        (b'{"text": "\xff\xfe"}\n', "invalid_utf8"),
        (b'\xef\xbb\xbf{"text": "in the middle of a file"}\n', "byte_order_mark"),
        (b'["text"]\n', "not_an_object"),
        (b'"text"\n', "not_an_object"),
        (b'{"body": "x"}\n', "no_text_field"),
        (b'{"text": null}\n', "text_is_null"),
        (b'{"text": 5}\n', "text_not_a_string"),
        (b'{"text": ["a"]}\n', "text_not_a_string"),
        (b'{"text": " \\n "}\n', "empty_text"),
        (b'{"text": ""}\n', "empty_text"),
    ],
)
def test_a_bad_line_has_its_reason_and_its_first_bytes(line: bytes, reason: str) -> None:
    skipped = parsed(line)
    assert isinstance(skipped, SkippedLine)
    assert (skipped.line, skipped.reason) == (2, reason)
    assert len(skipped.first_bytes) <= 4 * 80
    assert skipped.first_bytes.startswith(line.decode(errors="backslashreplace").rstrip("\r\n")[:20])


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'{"text": "with CRLF"}\r\n', "with CRLF"),
        (b'{"text": "without newline"}', "without newline"),
        (b'{"text": "a \\u0000 NUL and \\ud83d\\ude86"}\n', "a \0 NUL and 🚆"),
        (b'{"text": "NaN is what pandas writes", "score": NaN}\n', "NaN is what pandas writes"),
        (b'{"text": "a", "title": "half \\ud83d"}\n', "a"),
        (b'{"text": "twice", "text": "the last one holds"}\n', "the last one holds"),
    ],
)
def test_lines_that_are_documents(line: bytes, text: str) -> None:
    document = parsed(line)
    assert isinstance(document, Document)
    assert (document.text, document.line, document.byte_offset) == (text, 2, 10)


def test_a_byte_order_mark_at_the_beginning_of_a_file_is_no_part_of_it() -> None:
    document = parsed(b'\xef\xbb\xbf{"text": "one"}', number=1)
    assert isinstance(document, Document)
    assert document.text == "one"


def test_dotted_names_are_fields_of_fields() -> None:
    options = ReadingOptions(1 << 20, "article.body", "meta.from")
    document = parsed(b'{"article": {"body": "a"}, "meta": {"from": "wire"}}', options=options)
    assert isinstance(document, Document)
    assert (document.text, document.source) == ("a", "wire")
    named = parsed(b'{"article.body": "by this very name", "article": {"body": "a"}}', options=options)
    assert isinstance(named, Document)
    assert named.text == "by this very name"
    for other in (b'{"article": "a"}', b'{"article": {}}', b'{"article": null}'):
        skipped = parsed(other, options=options)
        assert isinstance(skipped, SkippedLine)
        assert skipped.reason == "no_text_field"


def test_a_source_that_is_no_text_is_none() -> None:
    for source in (b"3", b"null", b'"\\ud800"'):
        document = parsed(b'{"text": "a", "source": ' + source + b"}")
        assert isinstance(document, Document)
        assert document.source is None


def test_rows_of_a_parquet_file() -> None:
    document = parse_row(RawLine(3, 2, 3, 3, 1, {"text": "a", "source": "wire"}), OPTIONS)
    assert document == Document("a", "wire", 3, 2)
    assert parse_row(RawLine(3, 2, 3, 3, 1, {"text": b"a", "source": b"wire"}), OPTIONS) == document
    for value, reason in ((["a"], "text_not_a_string"), (b"\xff", "invalid_utf8")):
        skipped = parse_row(RawLine(3, 2, 3, 3, 1, {"text": value}), OPTIONS)
        assert isinstance(skipped, SkippedLine)
        assert skipped.reason == reason
