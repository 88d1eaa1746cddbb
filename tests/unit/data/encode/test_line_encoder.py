"""Batches that the loops encode are those that Python encodes, and a wrong text is found."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from pretraining.data.encode.encoded import EncodedBatch
from pretraining.data.encode.encoding import BatchEncoder, DocumentReader
from pretraining.data.encode.line_encoder import LineEncoder
from pretraining.data.encode.splits import SplitAssigner
from pretraining.data.input.documents import ReadingOptions
from pretraining.data.input.files import InputFile
from pretraining.data.input.filters import CleaningRules, TextFilter
from pretraining.data.input.reading import RawBatch, read_batches
from pretraining.data.input.slices import FileRange
from pretraining.data.tokenize import tokenizer as tokenizers_module
from pretraining.data.tokenize.backends import BackendDiffersError, CheckedBackend, ReferenceBackend
from pretraining.data.tokenize.bpe_merges import EncoderState
from pretraining.data.tokenize.bpe_words import Documents
from pretraining.data.tokenize.compiled_backend import CompiledBackend, Functions
from pretraining.data.tokenize.reference import TokenizerFile
from pretraining.data.tokenize.tokenizer import DocumentTokenizer
from tests.unit.data.tokenize.vocabularies import VOCABULARIES, small

OPTIONS = ReadingOptions(max_document_bytes=400)
LINES = [
    b'\xef\xbb\xbf{"text": "after a byte order mark"}\n',
    b'{"text": "abc ab", "source": "web"}\n',
    b"\n",
    b"\n",
    b'{"text": " abc", "source": "\\u00e9"}\n',
    b'  {"text": "\\u2581abc 1", "source": ""}\n',
    b'{"text": "' + b"x" * 500 + b'"}\n',
    b"not JSON\n",
    b'{"text": "lone \\ud83d"}\n',
    b'{"text": "\xff"}\n',
    b'{"text": NaN}\n',
    b'{"text": "exponent", "n": 1e5}\n',
    b'{"text": "twice", "source": "s", "source": "t"}\n',
    b'{"text": "  "}\n',
    b"[1]\n",
    *(b'{"text": "ab c%d \xe6\x9d\xb1\\n", "source": "%d"}\n' % (number, number % 3) for number in range(50)),
    b'{"text": "without a newline"}',
]


@pytest.fixture
def make_encoder(
    tmp_path: Path, compiled: Functions, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Tokenizer, bool, Functions | None], BatchEncoder]:
    """Encoders by a tokenizer, with BOS or not; without functions by the reference."""

    def make(tokenizer: Tokenizer, add_bos: bool, functions: Functions | None) -> BatchEncoder:
        folder = tmp_path / "tokenizer"
        folder.mkdir(exist_ok=True)
        pipeline = json.loads(tokenizer.to_str())
        number = max(pipeline["model"]["vocab"].values()) + 1
        flags = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        pipeline["added_tokens"] = [
            {"id": number + n, "content": text, **flags} for n, text in enumerate(["<s>", "</s>"])
        ]
        (folder / "tokenizer.json").write_text(json.dumps(pipeline))
        (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')

        def choose(_name: str, file: TokenizerFile, *_arguments: object, **_named: object) -> object:
            reference = ReferenceBackend(file.tokenizer)
            if functions is None:
                return reference
            return CheckedBackend(CompiledBackend(file.current_pipeline, functions), reference)

        monkeypatch.setattr(tokenizers_module, "choose_backend", choose)
        opened = DocumentTokenizer(folder, name="t", add_bos=add_bos, backend="auto", flag="--tokenizer")
        reader = DocumentReader(OPTIONS, TextFilter(CleaningRules()))
        return BatchEncoder(reader, SplitAssigner((2, 1, 1), seed=-3), opened)

    return make


def read(tmp_path: Path, source: str | None = None) -> list[RawBatch]:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"".join(LINES))
    file = InputFile("lines.jsonl", source, "jsonl", None, path.stat().st_size, str(path))
    return list(read_batches([file], [FileRange(0, 0, None, 1)], None, OPTIONS))


def assert_same(ours: EncodedBatch, theirs: EncodedBatch) -> None:
    assert np.array_equal(ours.ids, theirs.ids)
    assert ours.ids.dtype == theirs.ids.dtype
    assert np.array_equal(ours.lengths, theirs.lengths)
    assert ours.skipped == theirs.skipped
    assert ours.rows.sources == theirs.rows.sources
    for name in ("lines", "byte_offsets", "num_text_bytes", "splits"):
        assert np.array_equal(getattr(ours.rows, name), getattr(theirs.rows, name)), name
    assert (ours.path, ours.end, ours.num_bytes) == (theirs.path, theirs.end, theirs.num_bytes)


@pytest.mark.parametrize(("how", "add_bos"), [("compiled", False), ("compiled", True), ("interpreted", True)])
@pytest.mark.parametrize("make", VOCABULARIES.values(), ids=VOCABULARIES)
def test_a_batch_is_the_same(
    make: Callable[[], Tokenizer],
    add_bos: bool,
    how: str,
    make_encoder: Callable[..., BatchEncoder],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    functions = request.getfixturevalue(how)
    for source in (None, "named") if how == "compiled" else (None,):
        ours = make_encoder(make(), add_bos, functions)
        assert ours.tokenizer.compiled is not None
        (batch,) = read(tmp_path, source)
        (again,) = read(tmp_path, source)
        assert_same(ours.encode(batch), make_encoder(make(), add_bos, None).encode(again))


def test_a_batch_without_documents(
    make_encoder: Callable[..., BatchEncoder], compiled: Functions, tmp_path: Path
) -> None:
    (batch,) = read(tmp_path)
    batch.parts[:] = [part for part in batch.parts if part.num_bytes > 400]
    encoded = make_encoder(small(), False, compiled).encode(batch)
    assert not len(encoded.ids)
    assert [line.reason for line in encoded.skipped] == ["too_large"]


@pytest.mark.parametrize(
    ("what", "problem"),
    [("text", "read another text than"), ("hash", "hash a text otherwise than"), ("ids", "gives other ids than")],
)
def test_what_is_wrong_is_found(
    what: str, problem: str, make_encoder: Callable[..., BatchEncoder], compiled: Functions, tmp_path: Path
) -> None:
    """Of 30,000, of which one in a thousand is checked."""

    def read_json_lines(lines: object, first: int, texts: object) -> int:
        left = compiled.read_json_lines(lines, first, texts)
        texts.data[texts.ends[texts.ends > 0] - 1] ^= 1
        return left

    def hash_texts(*arguments: object) -> int:
        done = compiled.hash_texts(*arguments)
        arguments[-1][:done] ^= np.uint64(1 << 63)
        return done

    def encode_batch(documents: Documents, tables: object, state: EncoderState) -> int:
        total = compiled.encode_batch(documents, tables, state)
        if len(documents.begins) > 1:
            state.ids[:total] ^= 1
        return total

    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"".join(b'{"text": "story %d"}\n' % number for number in range(30_000)))
    file = InputFile("lines.jsonl", None, "jsonl", None, path.stat().st_size, str(path))
    wrong = {
        "text": {"read_json_lines": read_json_lines},
        "hash": {"hash_texts": hash_texts},
        "ids": {"encode_batch": encode_batch},
    }[what]
    encoder = make_encoder(small(), False, replace(compiled, **wrong))
    batches = read_batches([file], [FileRange(0, 0, None, 1)], None, OPTIONS)
    with pytest.raises(BackendDiffersError, match=problem):
        [encoder.encode(batch) for batch in batches]


def test_fields_within_objects_and_filters_are_left_to_python(
    make_encoder: Callable[..., BatchEncoder], compiled: Functions, tmp_path: Path
) -> None:
    encoder = make_encoder(small(), False, compiled)
    (batch,) = read(tmp_path)
    assert LineEncoder(OPTIONS, encoder.splits, encoder.tokenizer).supports(batch)
    for options in (replace(OPTIONS, text_field="a.text"), replace(OPTIONS, source_field="a.b")):
        assert not LineEncoder(options, encoder.splits, encoder.tokenizer).supports(batch)
    filtered = replace(encoder, reader=DocumentReader(OPTIONS, TextFilter(CleaningRules(min_characters=10))))
    assert "too_short" in [line.reason for line in filtered.encode(batch).skipped]
