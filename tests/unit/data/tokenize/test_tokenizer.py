import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError
from tests.conftest import PROJECT_DIR
from tests.unit.data.tokenize.test_backends import per_text

SAMPLE = PROJECT_DIR / "data/sample/tokenizer"
ODD_TEXTS = [
    "a",
    " leading",
    "trailing ",
    "\n\n\t x",
    "emoji 🚆🚆",
    "東京",
    "e\u0301 é",
    "a\x00b\x07",
    "x" * 5000,
    "   ",
]


@pytest.mark.parametrize("add_bos", [False, True])
def test_documents_are_surrounded_as_the_rules_say(add_bos: bool) -> None:
    tokenizer = load_document_tokenizer(str(SAMPLE), add_bos=add_bos)
    plain = Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))
    for text, ids in zip(ODD_TEXTS, per_text(tokenizer.encode(ODD_TEXTS)), strict=True):
        expected = plain.encode(text, add_special_tokens=False).ids
        assert ids.tolist() == ([1] if add_bos else []) + expected + [2]
        assert plain.decode(expected) == text


@pytest.mark.parametrize("backend", ["reference", "fastokens"])
@pytest.mark.parametrize("text", ["the end </s> or not", "<s>", "a<unk>b </s></s>"])
@pytest.mark.guarantee("Text such as `</s>` in a document cannot end it.")
def test_text_cannot_speak_control(text: str, backend: str) -> None:
    tokenizer = load_document_tokenizer(str(SAMPLE), add_bos=False, backend=backend)
    (ids,) = per_text(tokenizer.encode([text]))
    assert ids[-1] == 2
    assert not set(ids[:-1].tolist()) & {0, 1, 2}
    assert Tokenizer.from_file(str(SAMPLE / "tokenizer.json")).decode(ids[:-1].tolist()) == text


@pytest.mark.parametrize("backend", ["reference", "fastokens"])
def test_text_cannot_speak_control_where_the_file_calls_eos_an_ordinary_token(tmp_path: Path, backend: str) -> None:
    pipeline = json.loads((SAMPLE / "tokenizer.json").read_text(encoding="utf-8"))
    for token in pipeline["added_tokens"]:
        token["special"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_bytes((SAMPLE / "tokenizer_config.json").read_bytes())
    tokenizer = load_document_tokenizer(str(tmp_path), add_bos=True, backend=backend)
    (ids,) = per_text(tokenizer.encode(["a <s> b </s> c"]))
    assert (ids[0], ids[-1]) == (1, 2)
    assert not set(ids[1:-1].tolist()) & {0, 1, 2}


@pytest.mark.parametrize("backend", ["reference", "fastokens"])
def test_llama2_text_cannot_speak_control(real_data: Path, backend: str) -> None:
    tokenizer = load_document_tokenizer(str(real_data / "llama2"), add_bos=True, backend=backend)
    plain = Tokenizer.from_file(str(real_data / "llama2/tokenizer.json"))
    for text in ("</s>", "<s>", "one </s> two</s>", "<unk>"):
        (ids,) = per_text(tokenizer.encode([text]))
        assert not set(ids[1:-1].tolist()) & {0, 1, 2}
        assert plain.decode(ids[1:-1].tolist()) == text


def test_dropout_saved_with_a_tokenizer_does_not_change_ids(tmp_path: Path) -> None:
    pipeline = json.loads((SAMPLE / "tokenizer.json").read_text(encoding="utf-8"))
    pipeline["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_bytes((SAMPLE / "tokenizer_config.json").read_bytes())
    theirs, ours = (load_document_tokenizer(str(folder), add_bos=False) for folder in (tmp_path, SAMPLE))
    assert np.array_equal(theirs.encode(["a long story " * 50]).ids, ours.encode(["a long story " * 50]).ids)


def test_a_model_that_makes_eos_of_plain_text_is_refused(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("</s>", -1.0), ("a", -2.0), ("▁", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(UserError, match="maps plain text </s> to a control token"):
        load_document_tokenizer(str(tmp_path), add_bos=False)


def test_auto_tokenizer_opens_the_sample_tokenizer_with_the_same_ids() -> None:
    theirs = AutoTokenizer.from_pretrained(SAMPLE)
    ours = load_document_tokenizer(str(SAMPLE), add_bos=False)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id) == (1, 2, 0)
    for text, ids in zip(ODD_TEXTS, per_text(ours.encode(ODD_TEXTS)), strict=True):
        assert theirs(text)["input_ids"] == ids[:-1].tolist()


@pytest.mark.guarantee("Ids are those of tokenizer.json itself.")
def test_llama2_ids_are_those_of_its_tokenizer_json(real_data: Path) -> None:
    ours = load_document_tokenizer(str(real_data / "llama2"), add_bos=True)
    plain = Tokenizer.from_file(str(real_data / "llama2/tokenizer.json"))
    for text, ids in zip(ODD_TEXTS, per_text(ours.encode(ODD_TEXTS)), strict=True):
        assert np.array_equal(ids, [1, *plain.encode(text, add_special_tokens=False).ids, 2])


def test_truncation_and_padding_of_the_file_cut_and_fill_nothing(tmp_path: Path) -> None:
    saved = Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))
    saved.enable_truncation(8)
    saved.enable_padding(length=8)
    saved.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_bytes((SAMPLE / "tokenizer_config.json").read_bytes())
    texts = ["hi", "a long story " * 100]
    theirs, ours = (load_document_tokenizer(str(folder), add_bos=False) for folder in (tmp_path, SAMPLE))
    for ids, expected in zip(per_text(theirs.encode(texts)), per_text(ours.encode(texts)), strict=True):
        assert np.array_equal(ids, expected)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json, vocab\.json .*; copy one of them there"):
        load_document_tokenizer(str(tmp_path), add_bos=False)


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((SAMPLE / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="has no eos_token"):
        load_document_tokenizer(str(tmp_path), add_bos=False)


def test_a_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        load_document_tokenizer(str(tmp_path), add_bos=False)
