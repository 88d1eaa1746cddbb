import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from pretraining.data.tokenize.reference import (
    TokenizerFile,
    ids_of,
    open_reference,
    read_pipeline,
    read_special_tokens,
)
from tests.unit.data.tokenize.vocabularies import METASPACE, opened, small


def test_the_text_of_a_control_token_is_text() -> None:
    pipeline = json.loads(small().to_str())
    flags = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    pipeline["added_tokens"] = [{"id": 900, "content": "</s>", **flags}]
    content = json.dumps(pipeline).encode()
    ordinary, special = open_reference(content, {}), open_reference(content, {"eos_token": "</s>"})
    assert ordinary.token_to_id("</s>") in ids_of(ordinary, "ab</s>")
    assert special.token_to_id("</s>") not in ids_of(special, "ab</s>")


def test_special_tokens_of_both_files_and_both_forms(tmp_path: Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<end>"}, "pad_token": null, "n": 1}')
    assert read_special_tokens(tmp_path) == {"eos_token": "<end>", "unk_token": "<unk>"}


def as_strings(pipeline: dict[str, Any]) -> None:
    pipeline["model"]["merges"] = [" ".join(pair) for pair in pipeline["model"]["merges"]]


def with_version(pipeline: dict[str, Any]) -> None:
    as_strings(pipeline)
    pipeline["model"]["merges"].insert(0, "#version: 0.2")


def without_type(pipeline: dict[str, Any]) -> None:
    del pipeline["model"]["type"]


def without_scheme(pipeline: dict[str, Any]) -> None:
    del pipeline["pre_tokenizer"]["prepend_scheme"]


@pytest.mark.parametrize("make_old", [as_strings, with_version, without_type, without_scheme], ids=lambda f: f.__name__)
def test_files_of_earlier_versions_are_read_as_the_library_reads_them(make_old: Any) -> None:
    pipeline = json.loads(small(normalizer=None, pre_tokenizer=METASPACE).to_str())
    make_old(pipeline)
    file = TokenizerFile(read_pipeline(json.dumps(pipeline).encode(), {}))
    today = json.loads(file.tokenizer.to_str())
    assert file.current_pipeline["model"]["merges"] == today["model"]["merges"] != []
    for name in ("vocab", "type", "unk_token", "byte_fallback"):
        assert file.current_pipeline["model"][name] == today["model"][name]
    assert file.current_pipeline["pre_tokenizer"] == today["pre_tokenizer"]


def test_a_file_that_the_library_refuses_is_refused_when_its_tokenizer_is_wanted() -> None:
    file = TokenizerFile(read_pipeline(b'{"model": {"type": "Other", "vocab": {}}}', {}))
    with pytest.raises(Exception, match="ModelUntagged"):
        _ = file.tokenizer


MODELS = {
    "BPE": models.BPE({"a": 0, "b": 9, "ab": 3}, [("a", "b")]),
    "Unigram": models.Unigram([("a", -1.0), ("b", -2.0)], unk_id=0, byte_fallback=False),
    "WordLevel": models.WordLevel({"a": 5, "b": 2}, unk_token="a"),
    "WordPiece": models.WordPiece({"a": 0, "b": 7}, unk_token="a"),
}


@pytest.mark.parametrize("added", [[], ["b"], ["</s>", "b", "<pad>"]])
@pytest.mark.parametrize("name", MODELS)
def test_the_vocabulary_ends_where_the_library_says(name: str, added: list[str]) -> None:
    tokenizer = Tokenizer(MODELS[name])
    tokenizer.add_special_tokens(added)
    tokenizer.add_tokens(added[::-2])
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    assert opened(tokenizer).vocab_size == highest + 1
