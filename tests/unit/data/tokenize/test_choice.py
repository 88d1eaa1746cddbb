"""The backend that is chosen by the flag, the tokenizer and the size of the input."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from pretraining.data.tokenize import choice
from pretraining.data.tokenize.backends import ReferenceBackend
from pretraining.data.tokenize.choice import choose_backend
from pretraining.data.tokenize.compiled_backend import MIN_BYTES, Functions, SwitchingBackend
from pretraining.errors import UserError
from tests.unit.data.tokenize import vocabularies
from tests.unit.data.tokenize.test_backends import SAMPLE, WrongFor, odd_texts, reference_tokenizer


def test_a_backend_that_fails_the_probe_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = reference_tokenizer(SAMPLE)
    wrong = WrongFor(ReferenceBackend(tokenizer), "CamelCase")
    monkeypatch.setattr(choice, "FastTokensBackend", lambda _: wrong)
    assert choose_backend("auto", tokenizer, []).name == "reference"
    assert "encoding with the reference, several times slower" in caplog.text
    assert "CamelCase" in caplog.text
    with pytest.raises(UserError, match="--tokenizer_backend fastokens: cannot use this tokenizer"):
        choose_backend("fastokens", tokenizer, [])


def test_a_tokenizer_that_the_fast_backend_refuses_is_encoded_by_the_reference() -> None:
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("b", -3.0)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    backend = choose_backend("auto", tokenizer, [])
    assert backend.encode(["a b"]).ids.tolist() == tokenizer.encode("a b").ids


def test_a_lowercasing_tokenizer_with_word_pieces_is_exact_by_whichever_backend() -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    texts = odd_texts(200)
    tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"]))
    tokenizer.encode_special_tokens = True
    flat = choose_backend("auto", tokenizer, ["[UNK]"]).encode(texts)
    assert flat.ids.tolist() == [i for text in texts for i in tokenizer.encode(text, add_special_tokens=False).ids]


def test_a_large_input_gets_the_compiled_backend(compiled: Functions, real_data: Path) -> None:
    tokenizer = reference_tokenizer(real_data / "llama2/tokenizer.json")
    small, large = (choose_backend("auto", tokenizer, ["<s>"], num_bytes=size) for size in (MIN_BYTES - 1, 1 << 30))
    assert small.name == "fastokens"
    assert isinstance(large, SwitchingBackend)
    assert large.wait().name == large.name == "compiled"
    texts = odd_texts(50)
    assert large.encode(texts).ids.tolist() == small.encode(texts).ids.tolist()


def test_the_compiled_backend_by_name() -> None:
    tokenizer = vocabularies.small()
    texts = odd_texts(300)
    flat = choose_backend("compiled", tokenizer, ["<unk>"]).encode(texts)
    assert flat.ids.tolist() == ReferenceBackend(tokenizer).encode(texts).ids.tolist()
    with pytest.raises(UserError, match=r"--tokenizer_backend compiled: cannot use this tokenizer \(the pre-tokenizer"):
        choose_backend("compiled", reference_tokenizer(SAMPLE), [])
