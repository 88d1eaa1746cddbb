"""What of a tokenizer.json is supported, and what is refused so that another backend takes over."""

import json
from typing import Any

import pytest

from pretraining.data.tokenize.bpe_tables import TextRules, UnsupportedError, build_tables, check_model, read_rules
from pretraining.data.tokenize.compiled_backend import Functions, load_backend
from pretraining.data.tokenize.reference import TokenizerFile, read_pipeline
from tests.unit.data.tokenize.vocabularies import (
    METASPACE,
    SPACE,
    byte_level_merges,
    from_pipeline,
    make_tokenizer,
    small,
)

PREPEND, REPLACE = {"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}}
WRITE = REPLACE | {"content": SPACE}


def pipeline_of(**options: Any) -> dict[str, Any]:
    return json.loads(small(**options).to_str())


@pytest.mark.parametrize(
    ("normalizer", "rules"),
    [
        (None, TextRules()),
        (PREPEND, TextRules(prefix=SPACE)),
        (WRITE, TextRules(space=SPACE)),
        ({"type": "Sequence", "normalizers": [PREPEND, WRITE]}, TextRules(space=SPACE, prefix=SPACE)),
    ],
)
def test_normalizers_that_are_supported(normalizer: dict[str, Any] | None, rules: TextRules) -> None:
    assert read_rules(pipeline_of(normalizer=normalizer)) == rules


@pytest.mark.parametrize(
    ("normalizer", "reason"),
    [
        ({"type": "NFC"}, "NFC"),
        ({"type": "Sequence", "normalizers": [WRITE, PREPEND]}, "Prepend"),
        ({"type": "Sequence", "normalizers": [PREPEND, PREPEND, WRITE]}, "Prepend"),
        ({"type": "Sequence", "normalizers": [PREPEND, WRITE, {"type": "Lowercase"}]}, "Lowercase"),
        (REPLACE | {"pattern": {"String": "a"}, "content": "b"}, "Replace"),
        (REPLACE | {"pattern": {"Regex": " "}, "content": SPACE}, "Replace"),
        (REPLACE | {"content": ""}, "more than one character"),
        (REPLACE | {"content": SPACE * 2}, "more than one character"),
        ({"type": "Prepend", "prepend": "ab"}, "more than one character"),
    ],
)
def test_normalizers_that_are_refused(normalizer: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        read_rules(pipeline_of(normalizer=normalizer))


def test_pre_tokenizers() -> None:
    assert read_rules(pipeline_of(normalizer=None, pre_tokenizer=METASPACE)) == TextRules(SPACE, SPACE, False, True)
    never = METASPACE | {"prepend_scheme": "never", "split": False}
    assert read_rules(pipeline_of(normalizer=None, pre_tokenizer=never)) == TextRules(SPACE, "", False, False)
    for refused in ({"type": "Whitespace"}, {"type": "Sequence", "pretokenizers": [METASPACE]}):
        with pytest.raises(UnsupportedError, match="pre-tokenizer"):
            read_rules(pipeline_of(normalizer=None, pre_tokenizer=refused))
    with pytest.raises(UnsupportedError, match="pre-tokenizer Metaspace"):
        read_rules(pipeline_of(pre_tokenizer=METASPACE))
    with pytest.raises(UnsupportedError, match="a replacement of spaces that is a space"):
        read_rules(pipeline_of(normalizer=None, pre_tokenizer=METASPACE | {"replacement": " "}))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"ignore_merges": True}, "ignore_merges"),
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"added_tokens": [added := {"id": 300, "content": "<x>", "special": False} | dict.fromkeys(
            ["single_word", "lstrip", "rstrip", "normalized"], False)]}, "added tokens"),
    ],
)  # fmt: skip
def test_models_that_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        check_model(pipeline_of(**options))


def test_other_models_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="the model WordLevel"):
        check_model({"model": {"type": "WordLevel"}})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda vocab: vocab.pop("<0x41>"), "byte_fallback without all bytes"),
        (lambda vocab: vocab.pop(SPACE), "a space that is not a token"),
    ],
)
def test_vocabularies_that_are_refused(interpreted: Functions, change: Any, reason: str) -> None:
    pipeline = json.loads(make_tokenizer([("a", "b")], "ab").to_str())
    change(pipeline["model"]["vocab"])
    with pytest.raises(UnsupportedError, match=reason):
        build_tables(pipeline, read_rules(pipeline), interpreted.fill_merges)


@pytest.mark.parametrize("vocab", [{}, {"": 0, "a": 1}, {"a": 0, "b": 1, "c": 1}])
def test_empty_tokens_and_two_of_one_id_are_refused(vocab: dict[str, int]) -> None:
    with pytest.raises(UnsupportedError, match="empty, or has an empty token or two of one id"):
        check_model({"model": {"type": "BPE", "vocab": vocab, "merges": []}})


def test_a_token_that_the_text_of_a_tokenizer_lacks_is_refused() -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 1}, "merges": []}
    content = json.dumps({"version": "1.0", "model": model}).encode()
    assert len(json.loads(from_pipeline(json.loads(content)).to_str())["model"]["vocab"]) == 2
    with pytest.raises(UnsupportedError, match="two of one id"):
        load_backend(TokenizerFile(read_pipeline(content, {})))


def test_a_dropped_character_before_a_word_that_merges_can_reach_is_refused(interpreted: Functions) -> None:
    options = {"normalizer": None, "pre_tokenizer": METASPACE, "unk_token": None, "byte_fallback": False}
    pipeline = json.loads(make_tokenizer([("a", SPACE)], "a", **options).to_str())
    with pytest.raises(UnsupportedError, match="merges across the start of a word"):
        build_tables(pipeline, read_rules(pipeline), interpreted.fill_merges)


def test_merges_of_the_tokens_of_bytes_are_refused(interpreted: Functions) -> None:
    pipeline = json.loads(make_tokenizer([("a", "<0x41>")], "a").to_str())
    with pytest.raises(UnsupportedError, match="merges of unknown characters"):
        build_tables(pipeline, read_rules(pipeline), interpreted.fill_merges)


def test_a_merge_that_stands_twice_has_its_later_rank(interpreted: Functions) -> None:
    pipeline = json.loads(small().to_str())
    pipeline["model"]["merges"].append(["a", "b"])
    tables = build_tables(pipeline, read_rules(pipeline), interpreted.fill_merges)
    ranks = [value >> 32 for key, value in tables.merges.reshape(-1, 2).tolist() if key >= 0]
    assert sorted(ranks) == [*range(1, len(pipeline["model"]["merges"]))]


def test_joined_characters_are_those_at_which_a_merge_happens(interpreted: Functions) -> None:
    pipeline = json.loads(byte_level_merges().to_str())
    tables = build_tables(pipeline, read_rules(pipeline), interpreted.fill_merges)
    joins = 1 - tables.ascii_cuts.reshape(128, 256)[:, :128].T
    assert joins[ord("t"), ord("h")] == 1
    assert joins[ord(" ")].all(), "a space is no token of this vocabulary, and what is dropped joins"
    joined = {(left[-1], right[0]) for left, right in pipeline["model"]["merges"]}
    assert not joins[ord("q"), ord("q")] or ("q", "q") in joined
