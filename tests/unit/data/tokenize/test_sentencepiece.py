"""Ids of a converted SentencePiece model are those of the SentencePiece library.

sentencepiece_ids.json has small models and what the library itself gives for odd texts, since it is not a requirement.
"""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from pretraining.data.tokenize.sentencepiece import sentencepiece_tokenizer
from pretraining.data.tokenize.tokenizer import load_document_tokenizer
from pretraining.errors import UserError
from tests.unit.data.tokenize.test_backends import per_text

FIXTURE = json.loads((Path(__file__).parent / "sentencepiece_ids.json").read_text())
KINDS = sorted(FIXTURE["models"])


def converted(content: bytes) -> Tokenizer:
    tokenizer, _ = sentencepiece_tokenizer(content, place="--tokenizer x", remedy="use another")
    tokenizer.encode_special_tokens = True  # as every tokenizer of this suite reads text
    return tokenizer


def model_proto(kind: str) -> Any:
    from transformers.utils import sentencepiece_model_pb2_new

    proto = sentencepiece_model_pb2_new.ModelProto()
    proto.ParseFromString(base64.b64decode(FIXTURE["models"][kind]["model"]))
    return proto


@pytest.mark.guarantee("A tokenizer.model that is accepted gives the ids of the SentencePiece library.")
@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_that_the_library_gave(kind: str) -> None:
    model = FIXTURE["models"][kind]
    tokenizer = converted(base64.b64decode(model["model"]))
    for text, ids in zip(FIXTURE["texts"], model["ids"], strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_with_a_model_is_a_tokenizer(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, folder = FIXTURE["models"][kind], tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(base64.b64decode(model["model"]))
    tokenizer = load_document_tokenizer(str(folder), add_bos=True)
    spec = model_proto(kind).trainer_spec
    assert (tokenizer.rules.bos_token_id, tokenizer.rules.eos_token_id) == (spec.bos_id, spec.eos_id)
    documents = per_text(tokenizer.encode(FIXTURE["texts"]))
    assert [ids.tolist() for ids in documents] == [[spec.bos_id, *ids, spec.eos_id] for ids in model["ids"]]
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(UserError, match="names T5Tokenizer, and only LlamaTokenizer is converted; save tokenizer"):
        load_document_tokenizer(str(folder), add_bos=True)


def test_the_models_differ_in_what_matters() -> None:
    protos = [model_proto(kind) for kind in KINDS]
    assert {proto.trainer_spec.model_type for proto in protos} == {1, 2}
    for spec, name in [("trainer_spec", "byte_fallback"), ("normalizer_spec", "add_dummy_prefix")]:
        assert {getattr(getattr(proto, spec), name) for proto in protos} == {True, False}
    assert {proto.normalizer_spec.remove_extra_whitespaces for proto in protos} == {True, False}


def test_names_of_control_tokens_are_text() -> None:
    for kind in KINDS:
        tokenizer = converted(base64.b64decode(FIXTURE["models"][kind]["model"]))
        assert not {1, 2} & set(tokenizer.encode("a </s> b<s></s>", add_special_tokens=False).ids)


def test_llama2_is_the_tokenizer_json_of_transformers(real_data: Path) -> None:
    ours = converted((real_data / "llama2/tokenizer.model").read_bytes())
    theirs = Tokenizer.from_file(str(real_data / "llama2/tokenizer.json"))
    theirs.encode_special_tokens = True
    assert ours.get_vocab() == theirs.get_vocab()
    lines = (real_data / "news.jsonl").read_text(encoding="utf-8").splitlines()[:500]
    for text in [*FIXTURE["texts"], *(json.loads(line)["text"] for line in lines)]:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_model_trained_here_by_the_library(tmp_path: Path, model_type: str) -> None:
    library = pytest.importorskip("sentencepiece")
    texts = [text for text in FIXTURE["texts"] if "\n" not in text] * 20
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    library.SentencePieceTrainer.train(
        input=str(tmp_path / "texts.txt"),
        model_prefix=str(tmp_path / "model"),
        model_type=model_type,
        vocab_size=300,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    tokenizer = converted((tmp_path / "model.model").read_bytes())
    reference = library.SentencePieceProcessor(model_file=str(tmp_path / "model.model"))
    for text in FIXTURE["texts"]:
        if "xxx" not in text:  # runs of one character have several best ways, between which rounding decides
            assert tokenizer.encode(text, add_special_tokens=False).ids == reference.encode(text), text


def change(proto: Any, kind: str) -> None:
    if kind == "words":
        proto.trainer_spec.model_type = 3
    elif kind == "suffix":
        proto.trainer_spec.treat_whitespace_as_suffix = True
    elif kind == "characters":
        proto.normalizer_spec.name, proto.normalizer_spec.precompiled_charsmap = "nmt_nfkc", b"table"
    elif kind == "symbol with spaces":
        proto.pieces[300].type, proto.pieces[300].piece = 4, "<\u2581>"
    elif kind == "symbols":
        proto.pieces[300].type = 4
    else:
        single = next(p for p in proto.pieces if p.type == 1 and p.piece == "e")
        single.piece = "eee"


@pytest.mark.parametrize(
    ("kind", "change_kind", "reason"),
    [
        ("llama", "words", "is neither a BPE nor a unigram model"),
        ("llama", "suffix", "puts spaces elsewhere than before words"),
        ("llama", "symbols", "has user-defined symbols and adds a space before a text"),
        ("llama", "characters", r"normalizes characters \(nmt_nfkc\)"),
        ("gemma", "symbol with spaces", "has user-defined symbols with spaces in them"),
        ("unigram", "lacks e", "lacks single characters of its pieces"),
    ],
)
def test_what_cannot_be_exact_is_refused(kind: str, change_kind: str, reason: str) -> None:
    proto = model_proto(kind)
    change(proto, change_kind)
    with pytest.raises(UserError, match=f"^--tokenizer x: its tokenizer.model {reason}, .*; use another$"):
        converted(proto.SerializeToString())


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x80" * 100])
def test_another_file_is_one_line(content: bytes) -> None:
    with pytest.raises(
        UserError, match=r"^--tokenizer x: its tokenizer\.model cannot be read .*; copy it there again$"
    ):
        converted(content)
